// What this machine can do at most: bytes read from memory and float32 multiply-adds, all threads together.
// Prints "GB/s GFLOP/s". Best of several rounds, for it is a limit. Built and run by roofline.py.

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <thread>
#include <vector>

typedef float Floats __attribute__((vector_size(32)));
typedef uint64_t Words __attribute__((vector_size(32)));

static double seconds(int threads, const std::function<void(int)>& work) {
    const auto began = std::chrono::steady_clock::now();
    std::vector<std::thread> running;
    for (int i = 0; i < threads; ++i) running.emplace_back(work, i);
    for (auto& one : running) one.join();
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
}

static volatile uint64_t kept_words;
static volatile float kept_floats;

static void read_all(const Words* data, size_t count) {
    Words a{}, b{}, c{}, d{};
    for (size_t i = 0; i + 4 <= count; i += 4) {
        a += data[i];
        b += data[i + 1];
        c += data[i + 2];
        d += data[i + 3];
    }
    a += b + c + d;
    kept_words = a[0] + a[1] + a[2] + a[3];
}

static void multiply_add(size_t rounds) {
    constexpr int kChains = 12;
    Floats sums[kChains];
    for (int i = 0; i < kChains; ++i) sums[i] = Floats{} + static_cast<float>(i);
    Floats factor = Floats{} + 0.999999f, term = Floats{} + 1e-6f;
    for (size_t round = 0; round < rounds; ++round)
        for (int i = 0; i < kChains; ++i) sums[i] = sums[i] * factor + term;
    Floats sum{};
    for (int i = 0; i < kChains; ++i) sum += sums[i];
    kept_floats = sum[0] + sum[7];
}

int main(int, char** arguments) {
    const int threads = std::max(1, std::atoi(arguments[1]));
    const size_t words = size_t{128} << 20 >> 5;  // 128 MiB a thread
    std::vector<std::vector<Words>> data(threads, std::vector<Words>(words, Words{} + 1));
    const size_t rounds = 5'000'000;
    double bytes = 0, flops = 0;
    for (int round = 0; round < 10; ++round) {
        const double reading = seconds(threads, [&](int i) { read_all(data[i].data(), words); });
        bytes = std::max(bytes, double(threads) * words * sizeof(Words) / reading);
    }
    for (int round = 0; round < 10; ++round) {
        const double computing = seconds(threads, [&](int) { multiply_add(rounds); });
        flops = std::max(flops, double(threads) * rounds * 12 * 8 * 2 / computing);
    }
    std::printf("%.3f %.3f\n", bytes / 1e9, flops / 1e9);
}
