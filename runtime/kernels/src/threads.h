// The library's own threads. ONNX Runtime's would spin for as long as one of them is stopped by the system within its
// work, and between two operators; these give way where other processes run on the same cores.
#pragma once
#include <cstdint>

namespace piston {

// Call job(data, index) on this thread, with index 0, and on up to threads - 1 others as they come free; return when
// all that began have ended. Which of them begin is open: a job takes its work piece by piece until none is left.
void run_on_threads(int threads, void (*job)(void* data, uint32_t index), void* data);

}  // namespace piston
