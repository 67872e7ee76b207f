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

__device__ inline float4 load_peer(uint32_t peer) {
  float4 v;
  asm volatile("ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
               : "r"(peer)
               : "memory");
  return v;
}

// Stores two floats into another block's shared memory; its barrier counts the eight bytes.
__device__ inline void store_peer_async(uint32_t peer, float a, float b, uint32_t peer_barrier) {
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.f32 [%0], {%1, %2}, [%3];" ::"r"(peer), "f"(a),
               "f"(b), "r"(peer_barrier)
               : "memory");
}

__device__ inline void barrier_arrive_peer(uint32_t peer_barrier) {
  asm volatile("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];" ::"r"(peer_barrier) : "memory");
}

}  // namespace pinion::cuda::ptx
