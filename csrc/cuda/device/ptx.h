// The PTX instructions that the kernels use, one function each. Each function has a body for the device, and a body for
// the host that tests/emulator runs. All of these instructions exist on sm_80 and later; those between launches do
// nothing before sm_90.
//
// Fragments. An instruction of a warp distributes a matrix over the lanes of the warp. Let g = lane / 4 be the group of
// a lane, and t = lane % 4 its number in the group. A register holds two 16-bit values of neighbouring columns, the
// first in the low half:
//
//   A [16 x 16], row-major               B [16 x 8], "col": k runs        C and D [16 x 8], float
//        k 2t,2t+1   k 2t+8,2t+9              n = g                            n 2t   n 2t+1
//   row g     a[0]        a[2]           k 2t,  2t+1   b[0]               row g     c[0]   c[1]
//   row g+8   a[1]        a[3]           k 2t+8,2t+9   b[1]               row g+8   c[2]   c[3]
//
// ldmatrix loads A fragments from the rows of A, and B fragments from the columns of B, which are the rows of W [N, K].
// It loads four 8x8 matrices of 16-bit values. Each lane gives the address of one row of 8 values:
//
//   Lanes 0-7 give the rows of matrix 0, lanes 8-15 of matrix 1, lanes 16-23 of matrix 2, lanes 24-31 of matrix 3.
//   Lane l receives in d[i] the values of matrix i at row l / 4, columns 2 * (l % 4) and 2 * (l % 4) + 1. With .trans
//   lane l receives column l / 4, rows 2 * (l % 4) and 2 * (l % 4) + 1.
//
//   A fragment, from rows in shared memory:   row = lane % 16,              column = lane / 16 * 8         -> a[0..3]
//   two B fragments (n 0-7, n 8-15) from W:   row = lane % 8 + lane/16 * 8, column = lane / 8 % 2 * 8      -> b0, b1
//   the same from B stored [K, N], .trans:    row = lane % 16,              column = lane / 16 * 8         -> b0, b1
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

#define PYPEFT_DEVICE __device__ __forceinline__

namespace pypeft {

// ---------------------------------------------------------------------------------------------- asynchronous copies
// Copies the first `kept` of 16 bytes from global to shared memory, bypassing L1, and fills the rest with zeros. Both
// addresses are multiples of 16. The thread that issued the copy may read the bytes after cp_async_wait; the other
// threads of the block may read them after cp_async_wait and a barrier. With kept = 0 nothing is read, and any address
// is accepted. If the compiler sees that `kept` is 16 or 0, the copy takes four instructions fewer.
PYPEFT_DEVICE void cp_async_16(void* shared, const void* global, int kept = 16) {
#ifdef __CUDA_ARCH__
  const uint32_t to = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(kept) : "memory");
#elif defined(CUDA_EMULATOR)
  emulator::copy_async(shared, global, 16, kept);
#endif
}

// Commits the copies that this thread issued since its last commit, as one group.
PYPEFT_DEVICE void cp_async_commit() {
#ifdef __CUDA_ARCH__
  asm volatile("cp.async.commit_group;" ::: "memory");
#elif defined(CUDA_EMULATOR)
  emulator::commit_copies();
#endif
}

// Waits until at most the kPending newest groups of this thread are still pending.
template <int kPending>
PYPEFT_DEVICE void cp_async_wait() {
#ifdef __CUDA_ARCH__
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
#elif defined(CUDA_EMULATOR)
  emulator::wait_copies(kPending);
#endif
}

// ------------------------------------------------------------------------------------------------- two 16-bit halves
// 0xFFFF in each half whose highest bit is 1, and 0 in the others.
PYPEFT_DEVICE uint32_t spread_signs(uint32_t halves) {
#ifdef __CUDA_ARCH__
  uint32_t spread;
  asm("prmt.b32 %0, %1, 0, 0xBB99;" : "=r"(spread) : "r"(halves));  // 8 more than a byte's number: its sign, 8 times
  return spread;
#else
  return (halves >> 15 & 0x00010001u) * 0xFFFFu;
#endif
}

// Two floats truncated to bfloat16 in one register, `low` in the low half. NaN stays NaN.
PYPEFT_DEVICE uint32_t truncate2(float low, float high) {
#ifdef __CUDA_ARCH__
  uint32_t pair;
  asm("cvt.rz.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
#else
  auto upper = [](float value) { return value == value ? __float_as_uint(value) >> 16 : 0x7FFFu; };
  return upper(low) | upper(high) << 16;
#endif
}

// ----------------------------------------------------------------------------------------------- between blocks
// Returns *ticket and increments it atomically; the value after `last` is 0. A thread that takes a later ticket sees
// all stores of this thread before the call, and all stores of the block before the last barrier.
PYPEFT_DEVICE unsigned take_ticket(unsigned* ticket, unsigned last) {
#ifdef __CUDA_ARCH__
  unsigned drawn;
  asm volatile("atom.acq_rel.gpu.global.inc.u32 %0, [%1], %2;" : "=r"(drawn) : "l"(ticket), "r"(last) : "memory");
  return drawn;
#elif defined(CUDA_EMULATOR)
  return emulator::take_ticket(ticket, last);
#else
  return 0;
#endif
}

// ---------------------------------------------------------------------------------------------- between launches
// Programmatic dependent launch. A launch by launch_overlapping() begins when every block of the launch before has
// called allow_next_launch() or ended, and not when their stores have been made.
PYPEFT_DEVICE void allow_next_launch() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#elif defined(CUDA_EMULATOR)
  emulator::allow_next_launch();
#endif
}

// Waits until the launch before has ended. This thread then sees all its stores. An overlapping launch stores to global
// memory, and loads what the launch before stores, only after this wait; every thread of it waits. A launch that does
// not overlap does not wait.
PYPEFT_DEVICE void wait_for_launch_before() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#elif defined(CUDA_EMULATOR)
  emulator::wait_for_launch_before();
#endif
}

// ------------------------------------------------------------------------------------------- shared memory, by matrix
// `row` is the address of the row that this lane gives, a multiple of 16; the layout is at the top of this file.
PYPEFT_DEVICE void ldmatrix_x4(uint32_t (&d)[4], const void* row) {
#ifdef __CUDA_ARCH__
  const uint32_t from = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
               : "r"(from)
               : "memory");
#elif defined(CUDA_EMULATOR)
  emulator::ldmatrix(d, row, 4, false);
#endif
}

PYPEFT_DEVICE void ldmatrix_x4_trans(uint32_t (&d)[4], const void* row) {
#ifdef __CUDA_ARCH__
  const uint32_t from = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
               : "r"(from)
               : "memory");
#elif defined(CUDA_EMULATOR)
  emulator::ldmatrix(d, row, 4, true);
#endif
}

// Loads two matrices. Lanes 0-15 give the addresses; the addresses of the other lanes are not used.
PYPEFT_DEVICE void ldmatrix_x2(uint32_t (&d)[2], const void* row) {
#ifdef __CUDA_ARCH__
  const uint32_t from = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
               : "=r"(d[0]), "=r"(d[1])
               : "r"(from)
               : "memory");
#elif defined(CUDA_EMULATOR)
  emulator::ldmatrix(d, row, 2, false);
#endif
}

PYPEFT_DEVICE void ldmatrix_x2_trans(uint32_t (&d)[2], const void* row) {
#ifdef __CUDA_ARCH__
  const uint32_t from = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
               : "=r"(d[0]), "=r"(d[1])
               : "r"(from)
               : "memory");
#elif defined(CUDA_EMULATOR)
  emulator::ldmatrix(d, row, 2, true);
#endif
}

// ------------------------------------------------------------------------------------------------------ tensor cores
// c += A B for A [16 x 16] and B [16 x 8] of the 16-bit type T; c is float.
template <class T>
PYPEFT_DEVICE void mma_16816(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);

template <>
PYPEFT_DEVICE void mma_16816<__nv_bfloat16>(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#ifdef __CUDA_ARCH__
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#elif defined(CUDA_EMULATOR)
  emulator::mma_16816<__nv_bfloat16>(c, a, b);
#endif
}

template <>
PYPEFT_DEVICE void mma_16816<__half>(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#ifdef __CUDA_ARCH__
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#elif defined(CUDA_EMULATOR)
  emulator::mma_16816<__half>(c, a, b);
#endif
}

// c += A B for A [16 x 8] and B [8 x 8] in tf32. The instruction ignores the low 13 bits of each float; to_tf32 rounds
// a float to tf32. C has the layout above. A and B have these layouts:
//
//   A, row-major          k t    k t+4          B, "col"     n = g
//               row g     a[0]   a[2]           k t          b[0]
//               row g+8   a[1]   a[3]           k t+4        b[1]
//
// ldmatrix also loads these fragments, because a float is two 16-bit values: of an 8 x 4 matrix of floats lane l
// receives row l / 4, column l % 4. ldmatrix.trans cannot load them; use ordinary loads.
PYPEFT_DEVICE void mma_1688_tf32(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#ifdef __CUDA_ARCH__
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#elif defined(CUDA_EMULATOR)
  emulator::mma_1688_tf32(c, a, b);
#endif
}

// The tf32 value nearest to `value`, ties away from zero, as the bits of a float.
PYPEFT_DEVICE uint32_t to_tf32(float value) {
#ifdef __CUDA_ARCH__
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(value));
  return bits;
#elif defined(CUDA_EMULATOR)
  return emulator::to_tf32(value);
#else
  return 0;
#endif
}

}  // namespace pypeft
