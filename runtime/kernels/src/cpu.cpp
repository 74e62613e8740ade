#include "cpu.h"

#include <cpuid.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace piston {
namespace {

constexpr int kRequestPermission = 0x1023;  // arch_prctl ARCH_REQ_XCOMP_PERM
constexpr unsigned kAvx512Bf16 = 1u << 5;   // of cpuid 7.1 eax
constexpr int kTileData = 18;               // the state component of the tile registers

bool has_vnni() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vnni");
}

bool has_bfloat16() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) != 0 && (eax & kAvx512Bf16) != 0;
}

bool has_amx() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return false;
  constexpr unsigned kBf16 = 1u << 22, kTile = 1u << 24, kInt8 = 1u << 25, kAll = kBf16 | kTile | kInt8;
  return (edx & kAll) == kAll && syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

Level detect() {
  if (!has_vnni()) return kUnsupported;
  if (!has_bfloat16()) return kVnni;
  return has_amx() ? kAmx : kBfloat16;
}

Level detected() {
  static const Level found = detect();
  return found;
}

Level& current() {
  static Level value = detected();
  return value;
}

}  // namespace

Level level() { return current(); }

Level set_level(Level wanted) {
  current() = wanted < detected() ? wanted : detected();
  return current();
}

int num_cores() {
  static const int count = [] {
    cpu_set_t set;
    return sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
  }();
  return count;
}

}  // namespace piston
