// A fiber has its own stack and runs until it switches to another fiber. AddressSanitizer is told about each switch.
#pragma once
#include <cstddef>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif
#if !defined(__x86_64__) || defined(EMULATOR_UCONTEXT)
#include <ucontext.h>
#define EMULATOR_PORTABLE 1
#endif

namespace emulator {

struct Fiber {
#ifdef EMULATOR_PORTABLE
  ucontext_t context;
#else
  void* stack_pointer = nullptr;
#endif
  void* fake_stack = nullptr;  // AddressSanitizer's
  char* stack = nullptr;       // null: the stack of the thread that launched the kernel
  size_t size = 0;
};

#ifdef EMULATOR_PORTABLE
inline void point_at(Fiber& fiber, void (*entry)()) {
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack;
  fiber.context.uc_stack.ss_size = fiber.size;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, entry, 0);
}
#else
// Pushes the callee-saved registers, switches the stack, and pops the registers from the other stack.
extern "C" void emulator_switch(void** save, void* load);
asm(R"(
.text
.type emulator_switch, @function
.local emulator_switch
emulator_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
)");

inline void point_at(Fiber& fiber, void (*entry)()) {
  void** top = reinterpret_cast<void**>(fiber.stack + fiber.size) - 2;
  top[0] = reinterpret_cast<void*>(entry);  // the first switch returns here, with the stack aligned as after a call
  top[1] = nullptr;
  fiber.stack_pointer = top - 6;
  for (int i = 1; i <= 6; ++i) top[-i] = nullptr;
}
#endif

// Must be the first call on a fiber after a switch to it.
inline void arrived(Fiber& here) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(here.fake_stack, nullptr, nullptr);
#else
  (void)here;
#endif
}

inline void hand_over(Fiber& from, Fiber& to) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&from.fake_stack, to.stack, to.size);
#endif
#ifdef EMULATOR_PORTABLE
  swapcontext(&from.context, &to.context);
#else
  emulator_switch(&from.stack_pointer, to.stack_pointer);
#endif
  arrived(from);
}

}  // namespace emulator
