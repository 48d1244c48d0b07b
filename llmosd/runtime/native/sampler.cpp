// Draws from rows of logits that no graph has drawn from: one plain C function, with threads of its own.
#include <algorithm>
#include <new>

#include "draw.h"
#include "export.h"
#include "team.h"

namespace llmos {
namespace {

// Whether other threads are worth waking: for rows whose largest logit is not all that is wanted.
bool is_long(Parameters* const* streams, int64_t count) {
  return std::count_if(streams, streams + count, [](const Parameters* p) { return p->scale || p->logprobs >= 0; }) > 1;
}

struct Sampler {
  explicit Sampler(int threads) : memories(threads), team(threads) {}
  std::vector<Memory> memories;  // one for each member of the team
  Team team;
};

}  // namespace
}  // namespace llmos

// A sampler, which draws on `threads` threads and is for one caller at a time; null if it cannot be had.
LLMOS_EXPORT void* llmos_sampler_open(int threads) {
  try {
    return new llmos::Sampler(threads);
  } catch (const std::exception&) {
    return nullptr;
  }
}

LLMOS_EXPORT void llmos_sampler_close(void* sampler) { delete static_cast<llmos::Sampler*>(sampler); }

// Draws a token from each of `count` rows of `length` logits, `stride` apart: its id, or -1 where the row holds NaN or
// its largest logit is not finite. Rows are changed meanwhile, and back. 0, or -1 if there is no memory.
LLMOS_EXPORT int llmos_draw(void* sampler, float* rows, int64_t stride, int64_t length, void* const* streams,
                            int64_t count, int64_t* tokens) {
  using namespace llmos;
  Sampler& self = *static_cast<Sampler*>(sampler);
  std::atomic<int> failed{0};
  const auto* parameters = reinterpret_cast<Parameters* const*>(streams);
  self.team.share(count, is_long(parameters, count), [&](int member, int64_t i) {
    try {
      tokens[i] = draw(rows + i * stride, length, parameters, i, self.memories[member]);
    } catch (const std::bad_alloc&) {
      failed = -1;
    }
  });
  return failed;
}
