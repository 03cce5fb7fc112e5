// Everything a kernel may use beyond plain C++: one inline function for each PTX instruction.
//
// A kernel file includes this header and files of kernels/common/, nothing else. Each function has two bodies: under
// nvcc one inline-assembly statement, under the host compiler one call into the interpreter
// (crates/rigel-interpreter/), whose twin of the instruction works on the CPU. kernels/conformance/ has a tiny kernel
// for every function.
//
//   file                 instructions                                                      needs
//   language.cuh         KERNEL, REGISTER_KERNEL, SHARED_MEMORY, DEVICE                    -
//   address.cuh          cvta.to.shared                                                    -
//   warp.cuh             shfl.sync, vote.sync, redux.sync, bar.warp.sync                   sm_80
//   barrier.cuh          barrier.sync, barrier.red, barrier.arrive                         -
//   memory.cuh           ld/st.global with cache hints, prefetch, createpolicy             sm_80
//   order.cuh            ld.acquire, st.release, ld/st.relaxed, fence                      sm_70
//   atomic.cuh           atom, red                                                         sm_70
//   shared_atomic.cuh    atom.shared                                                       sm_70
//   async_copy.cuh       cp.async, commit_group, wait_group                                sm_80
//   matrix.cuh           ldmatrix, mma.sync, stmatrix                                      sm_80, stmatrix sm_90
//   convert.cuh          cvt.rn.bf16x2.f32, cvt.rn.f16x2.f32 and back                      sm_80
//   math.cuh             ex2, lg2, rcp, rsqrt, tanh (approximate)                          sm_75
//   rounded.cuh          mul.rn, fma.rn                                                    -
//   grid_dependency.cuh  griddepcontrol                                                    sm_90, nothing below
//   mbarrier.cuh         mbarrier                                                          sm_90
//   bulk_copy.cuh        cp.async.bulk, cp.async.bulk.tensor (TMA), fence.proxy.async      sm_90
//   cluster.cuh          %cluster_ctarank, barrier.cluster, mapa, ld.shared::cluster,      sm_90
//                        st.async
//   warpgroup.cuh        wgmma, setmaxnreg                                                 sm_90a
//   time.cuh             globaltimer, clock64                                              -
#pragma once
#include "language.cuh"

#include "address.cuh"
#include "async_copy.cuh"
#include "atomic.cuh"
#include "barrier.cuh"
#include "bulk_copy.cuh"
#include "cluster.cuh"
#include "convert.cuh"
#include "grid_dependency.cuh"
#include "math.cuh"
#include "matrix.cuh"
#include "mbarrier.cuh"
#include "memory.cuh"
#include "order.cuh"
#include "rounded.cuh"
#include "shared_atomic.cuh"
#include "time.cuh"
#include "warp.cuh"
#include "warpgroup.cuh"
