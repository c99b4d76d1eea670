// The PTX instructions that the kernels use, each behind a function: the device's body, and beside it the body that
// tests/emulator runs on the host. Everything here needs sm_80 and nothing newer.
//
// Fragments. An instruction of a warp spreads a matrix over its lanes. With g = lane / 4 (the group) and t = lane % 4
// (the thread in its group), a 16-bit register holds two neighbouring columns, the first in its low half:
//
//   A [16 x 16], row-major               B [16 x 8], "col": k runs        C and D [16 x 8], float
//        k 2t,2t+1   k 2t+8,2t+9              n = g                            n 2t   n 2t+1
//   row g     a[0]        a[2]           k 2t,  2t+1   b[0]               row g     c[0]   c[1]
//   row g+8   a[1]        a[3]           k 2t+8,2t+9   b[1]               row g+8   c[2]   c[3]
//
// In memory, A's rows and B's columns (that is: W [N, K] and its rows) are what ldmatrix reads as they lie. Four 8x8
// matrices, each row 8 values of 16 bits, its address given by one lane:
//
//   lanes 0-7 the rows of matrix 0, 8-15 of matrix 1, 16-23 of 2, 24-31 of 3; lane l receives in d[i], of matrix i, row
//   l / 4, columns 2 * (l % 4) and the next. Transposed: column l / 4, rows 2 * (l % 4) and the next.
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
// 16 bytes, or `kept` of them followed by zeros, from global to shared memory, past L1. Both addresses are multiples of
// 16. Whoever issued it may read the bytes after cp_async_wait, the other threads of the block after a barrier besides.
// With kept = 0 nothing is read, whatever the address. Where `kept` is plainly 16 or 0 the compiler needs four
// instructions fewer.
PYPEFT_DEVICE void cp_async_16(void* shared, const void* global, int kept = 16) {
#ifdef __CUDA_ARCH__
  const uint32_t to = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(kept) : "memory");
#elif defined(CUDA_EMULATOR)
  emulator::copy_async(shared, global, 16, kept);
#endif
}

// Ends a group: the copies that this thread issued since the last one.
PYPEFT_DEVICE void cp_async_commit() {
#ifdef __CUDA_ARCH__
  asm volatile("cp.async.commit_group;" ::: "memory");
#elif defined(CUDA_EMULATOR)
  emulator::commit_copies();
#endif
}

// Waits until at most kPending of this thread's newest groups are under way.
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

// ----------------------------------------------------------------------------------------------- between blocks
// Draws a number: *ticket as it was; it becomes one more, or 0 after `last`. Whoever draws later sees what this thread
// stored before, and what the threads stored that it met at a barrier before.
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

// ------------------------------------------------------------------------------------------- shared memory, by matrix
// `row` is the address, a multiple of 16, of this lane's row; drawn above.
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

// Two matrices: lanes 0-15 give the addresses, those of the others are not used.
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
// c += A B, [16 x 16] [16 x 8], 16-bit operands and float sums; T chooses the type of both.
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

// c += A B, [16 x 8] [8 x 8] in tf32: floats whose low 13 bits count for nothing (to_tf32 rounds). C as above, and
//
//   A, row-major          k t    k t+4          B, "col"     n = g
//               row g     a[0]   a[2]           k t          b[0]
//               row g+8   a[1]   a[3]           k t+4        b[1]
//
// A float in shared memory is two 16-bit values, so that ldmatrix reads these fragments too: of an 8 x 4 matrix of
// floats lane l receives row l / 4, column l % 4. Transposed it does not: use loads.
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

// The nearest tf32, ties away from zero, as the bits of a float.
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
