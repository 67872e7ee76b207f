// Thread block clusters: ranks, barriers over the cluster, and its blocks' shared memory (PTX ISA "shared::cluster").
// Needs compute capability 9.
#pragma once

#include <cstdint>

namespace pinion::cuda::ptx {

__device__ inline uint32_t cluster_rank() {
  uint32_t r;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(r));
  return r;
}
__device__ inline uint32_t cluster_size() {
  uint32_t n;
  asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(n));
  return n;
}

// Without an order of memory accesses: for barriers that their initialising thread has fenced, and before an exit. (A
// release costs a wait for all of the thread's earlier accesses to be seen by the whole GPU.)
__device__ inline void cluster_arrive_relaxed() {
  asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
}
__device__ inline void cluster_arrive() {
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}
__device__ inline void cluster_wait() {
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}
__device__ inline void cluster_sync() {
  cluster_arrive();
  cluster_wait();
}

// The address, in the cluster's window, that `shared` (an address of this block) has in the block of that rank.
__device__ inline uint32_t peer_address(uint32_t shared, uint32_t rank) {
  uint32_t a;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(a) : "r"(shared), "r"(rank));
  return a;
}

// Ordered by the cluster's barriers, not against this thread's own stores.
__device__ inline float4 load_peer(uint32_t peer) {
  float4 v;
  asm volatile("ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
               : "r"(peer));
  return v;
}

// Arrives at another block's barrier once this thread's reads are done; orders nothing else across the cluster.
__device__ inline void barrier_arrive_peer(uint32_t peer_barrier) {
  asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(peer_barrier) : "memory");
}

}  // namespace pinion::cuda::ptx
