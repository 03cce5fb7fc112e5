// cp.async: copies from global to shared memory that run while the thread goes on.
// PTX ISA: Data Movement and Conversion, cp.async, cp.async.commit_group, cp.async.wait_group.
//
// A copy's bytes are in shared memory for the issuing thread after its wait, for others after a barrier that follows
// the wait. `bytes_read` below the copy's size fills the rest with zeros (0: the source is not read at all).
// Source and destination are aligned to the copy's size.
#pragma once
#include "language.cuh"

// 4 bytes, through L1 (cp.async.ca).
DEVICE void copy_async_4(uint32_t shared_destination, const void* global_source, uint32_t bytes_read = 4) {
#if ON_GPU
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared_destination), "l"(global_source),
                 "r"(bytes_read)
                 : "memory");
#else
    interpreter::copy_async(shared_destination, global_source, 4, bytes_read);
#endif
}
// 8 bytes, through L1 (cp.async.ca).
DEVICE void copy_async_8(uint32_t shared_destination, const void* global_source, uint32_t bytes_read = 8) {
#if ON_GPU
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(shared_destination), "l"(global_source),
                 "r"(bytes_read)
                 : "memory");
#else
    interpreter::copy_async(shared_destination, global_source, 8, bytes_read);
#endif
}
// 16 bytes, past L1 (cp.async.cg).
DEVICE void copy_async_16(uint32_t shared_destination, const void* global_source, uint32_t bytes_read = 16) {
#if ON_GPU
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_destination), "l"(global_source),
                 "r"(bytes_read)
                 : "memory");
#else
    interpreter::copy_async(shared_destination, global_source, 16, bytes_read);
#endif
}

// Closes the group of all copies that this thread has issued since the last commit; an empty group is a group.
DEVICE void copy_async_commit() {
#if ON_GPU
    asm volatile("cp.async.commit_group;" ::: "memory");
#else
    interpreter::copy_async_commit();
#endif
}
// Waits until at most the `Pending` newest groups of this thread are unfinished.
template <int Pending>
DEVICE void copy_async_wait() {
#if ON_GPU
    asm volatile("cp.async.wait_group %0;" ::"n"(Pending) : "memory");
#else
    interpreter::copy_async_wait(Pending);
#endif
}
// Waits for every copy of this thread, committed or not.
DEVICE void copy_async_wait_all() {
#if ON_GPU
    asm volatile("cp.async.wait_all;" ::: "memory");
#else
    interpreter::copy_async_wait_all();
#endif
}
