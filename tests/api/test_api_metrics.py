"""Metrics by their values after a known load, on a clock that only the cost model moves."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from api_house import LIMITS, MODEL, PACE_S, House, open_house
from prometheus_client.parser import text_string_to_metric_families

from llmosd.application.engine_messages import Batch
from llmosd.application.http.metrics import Metrics
from llmosd.system.kernel import Kernel
from llmosd.system.kernels import Kernels
from llmosd.system.policy import Fcfs
from llmosd.types import RequestSpec, Sampling

COMPLETIONS = "/v1/completions"


def body(**fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "prompt": "hello", "max_tokens": 4, **fields}


def histogram(house: House, name: str) -> tuple[float, float]:
    """(count, sum)"""
    return house.value(f"{name}_count"), pytest.approx(house.value(f"{name}_sum"))


async def test_two_requests_in_a_row(house: House) -> None:
    # A step costs 1 ms, a prefilled token 1 ms, a decoding sequence 2 ms: 6 ms to the first token, 3 ms to each next.
    for _ in range(2):
        await house.http.post(COMPLETIONS, json=body())
    assert histogram(house, "vllm:time_to_first_token_seconds") == (2, 0.012)
    assert histogram(house, "vllm:inter_token_latency_seconds") == (6, 0.018)
    assert histogram(house, "vllm:e2e_request_latency_seconds") == (2, 0.030)
    assert histogram(house, "vllm:request_queue_time_seconds") == (2, 0)
    assert histogram(house, "vllm:request_prefill_time_seconds") == (2, 0.012)
    assert histogram(house, "vllm:request_decode_time_seconds") == (2, 0.018)
    assert histogram(house, "llmos_request_preempted_time_seconds") == (2, 0)
    assert histogram(house, "vllm:iteration_tokens_total") == (8, 2 * (5 + 3))
    assert histogram(house, "llmos_step_seconds") == (8, 0.030)
    assert house.value("llmos_step_run_seconds_total") == pytest.approx(0.030)
    assert house.value("llmos_step_overhead_seconds_total") == pytest.approx(0)
    assert house.value("vllm:prompt_tokens_total") == 10
    assert house.value("vllm:generation_tokens_total") == 8
    assert house.value("llmos_prefill_tokens_total") == 10
    assert house.value("llmos_requests_accepted_total") == 2
    assert house.value("vllm:request_success_total", finished_reason="length") == 2
    assert house.value("vllm:num_requests_running") == house.value("vllm:num_requests_waiting") == 0
    assert house.value("vllm:kv_cache_usage_perc") == house.value("llmos_pages_used") == 0
    assert house.value("llmos_pages") == LIMITS.pages and house.value("llmos_slots") == LIMITS.slots
    labels = {"method": "POST", "route": COMPLETIONS, "status": "200"}
    assert house.value("llmos_http_requests_total", **labels) == 2


async def test_the_queue_time_ends_when_a_request_is_first_scheduled() -> None:
    async with open_house(limits=replace(LIMITS, slots=1)) as house:
        await house.http.post(COMPLETIONS, json=body(prompt=["hello", "hello"]))
        # The second waits for the whole of the first, 6 + 3 × 3 ms.
        assert histogram(house, "vllm:request_queue_time_seconds") == (2, 0.015)
        assert histogram(house, "vllm:time_to_first_token_seconds") == (2, 0.006 + 0.021)
        assert histogram(house, "vllm:request_prefill_time_seconds") == (2, 0.012)


async def test_a_preemption_counts_by_its_reason_and_in_the_gap_it_makes() -> None:
    # Two sequences of 5 + 40 tokens need 6 pages of 16 at their ends; the pool has 4.
    async with open_house(limits=replace(LIMITS, pages=4)) as house:
        house.executor.gate.clear()
        call = asyncio.create_task(house.http.post(COMPLETIONS, json=body(prompt=["hello", "hello"], max_tokens=40)))
        await house.until(lambda: len(house.service.roster._streams) == 2)
        house.executor.gate.set()
        answer = await call
        assert answer.status_code == 200
        preemptions = house.value("vllm:num_preemptions_total")
        assert preemptions > 0
        assert house.value("llmos_preemptions_total", reason="pages") == preemptions
        assert house.value("llmos_request_preempted_time_seconds_sum") > 0
        gaps, total = (
            house.value("vllm:inter_token_latency_seconds_count"),
            house.value("vllm:inter_token_latency_seconds_sum"),
        )
        assert gaps == 2 * 39 and total == pytest.approx(house.value("vllm:request_decode_time_seconds_sum"))
        assert house.value("vllm:prompt_tokens_total") == 10
        assert house.value("llmos_prefill_tokens_total") >= 10


async def test_cancelled_and_failed_requests_count_and_have_no_latency(house: House) -> None:
    house.executor.pause_s = PACE_S
    call = asyncio.create_task(house.http.post(COMPLETIONS, json=body(max_tokens=500)))
    await house.until(lambda: bool(house.executor.started))
    call.cancel()
    await house.until(lambda: house.value("vllm:request_success_total", finished_reason="abort") == 1)
    house.executor.poisoned = "poison"
    await house.http.post(COMPLETIONS, json=body(prompt="poison"))
    assert house.value("vllm:request_success_total", finished_reason="error") == 1
    assert histogram(house, "vllm:e2e_request_latency_seconds") == (0, 0)
    assert house.metrics._lives == {}


async def test_the_exposition_parses_and_names_are_vllms(house: House) -> None:
    house.metrics.gauge("llmos_loop_lag_p99_seconds", "Loop lag", lambda: 0.25)
    house.metrics.gauge("llmos_not_measured", "Nothing yet", lambda: None)
    house.metrics.counter("llmos_telemetry_gaps", "Gaps", lambda: 3)
    await house.http.post(COMPLETIONS, json=body())
    answer = await house.http.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    samples = {s.name: s.value for family in text_string_to_metric_families(answer.text) for s in family.samples}
    assert samples["llmos_loop_lag_p99_seconds"] == 0.25 and samples["llmos_telemetry_gaps_total"] == 3
    assert "llmos_not_measured" not in samples
    assert samples["vllm:generation_tokens_total"] == 4
    assert samples["vllm:iteration_tokens_total_sum"] == 8
    wanted = {"Accept": "application/openmetrics-text; version=1.0.0"}
    openmetrics = await house.http.get("/metrics", headers=wanted)
    assert openmetrics.headers["content-type"].startswith("application/openmetrics-text")
    assert openmetrics.text.endswith("# EOF\n")


async def test_http_requests_are_counted_by_route_not_by_path(house: House) -> None:
    for id in ("a", "b"):
        await house.http.get(f"/v1/requests/{id}")
        await house.http.get(f"/{id}")
    count = {"method": "GET", "status": "404"}
    assert house.value("llmos_http_requests_total", route="/v1/requests/{id}", **count) == 2
    assert house.value("llmos_http_requests_total", route="unknown", **count) == 2


async def test_users_have_what_they_hold_and_used() -> None:
    async with open_house(prefixes=True) as house:
        house.metrics.users(lambda: house.service.inspected.users if house.service.inspected else ())
        for user in ("alice", "alice", '*"b"'):
            await house.http.post(COMPLETIONS, json=body(user=user, prompt="hello " * 20))
        ended = await house.service.requests()

        def value(name: str, user: str) -> float | None:
            return house.metrics.registry.get_sample_value(name, {"user": user})

        for user, label, times in (("alice", "alice", 2), ('*"b"', '**"b"', 1)):
            page_s = sum(view.page_ns for view in ended if view.user == user) / 1e9
            assert value("llmos_user_page_seconds_total", label) == pytest.approx(page_s) and page_s > 0
            assert value("llmos_user_generated_tokens_total", label) == 4 * times
            assert value("llmos_user_pages", label) == value("llmos_user_running", label) == 0
        reused = value("llmos_user_reused_tokens_total", "alice")
        assert reused and value("llmos_user_prefilled_tokens_total", "alice") == 2 * 120 - reused
        text = (await house.http.get("/metrics")).text
        assert len([family for family in text_string_to_metric_families(text) if "user" in family.name]) == 6


def test_gauges_and_totals_are_each_models_own() -> None:
    kernels = Kernels(Kernel(LIMITS, Fcfs(), model="a"), Kernel(replace(LIMITS, pages=5), Fcfs(), model="b"))
    kernels.submit(RequestSpec("r", "b", [1], Sampling(max_tokens=1)), 0)
    metrics = Metrics("a")
    metrics.observe(Batch((), (), None, kernels.stats(requests=False)))

    def value(name: str, model: str) -> float | None:
        return metrics.registry.get_sample_value(name, {"model_name": model})

    assert [value("llmos_pages", model) for model in "ab"] == [LIMITS.pages, 5]
    assert [value("vllm:num_requests_waiting", model) for model in "ab"] == [0, 1]
    assert [value("llmos_requests_accepted_total", model) for model in "ab"] == [0, 1]
