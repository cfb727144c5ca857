// Loops over independent outputs, shared out among a few lasting threads.
//
// A loop ends when its pieces are done, not when every thread has come by: on a machine whose other
// cores are busy, the caller does all pieces itself instead of waiting for a thread to wake.

#pragma once

#include <cstdint>

namespace multiflora {

using Body = void (*)(const void* context, int64_t first, int64_t stop);

// Calls body for ranges that cover [0, count) once, perhaps from several threads. As many of them
// as OpenMP would use for the caller; one, if another caller has them at the moment.
void share_out(int64_t count, Body body, const void* context);

// `body(first, stop)`, in one piece where sharing is not worth it.
template <typename F>
inline void parallel_for(int64_t count, bool is_worth_it, const F& body) {
  if (count <= 0) return;
  if (!is_worth_it || count == 1) return body(0, count);
  share_out(
      count,
      [](const void* context, int64_t first, int64_t stop) {
        (*static_cast<const F*>(context))(first, stop);
      },
      &body);
}

}  // namespace multiflora
