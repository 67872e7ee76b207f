# CUDA through CMake's own language. PINION_CUDA_ARCHS are architectures as nvcc writes them after sm_: 90a holds what
# Hopper alone has (wgmma), and runs on no other.
set(PINION_CUDA_ARCHS 90a CACHE STRING "GPU architectures to compile for, for example 90a or 80;86;89;90a;100;120")
if(PINION_SANITIZE)
  message(FATAL_ERROR "PINION_CUDA and PINION_SANITIZE exclude each other: use compute-sanitizer on the GPU")
endif()
set(CMAKE_CUDA_ARCHITECTURES ${PINION_CUDA_ARCHS})
list(TRANSFORM CMAKE_CUDA_ARCHITECTURES APPEND "-real")  # machine code only: nothing is compiled when a program starts
if(CCACHE)
  set(CMAKE_CUDA_COMPILER_LAUNCHER ${CCACHE})
endif()
set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
enable_language(CUDA)
find_package(CUDAToolkit 12.3 REQUIRED)  # cudaFuncGetName, dependent launch inside graphs
# The standard follows CMAKE_CXX_STANDARD, and CMake 3.25 does not know how this nvcc says 20.
set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION "-std=c++20")
set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION "-std=c++20")
add_compile_options($<$<COMPILE_LANGUAGE:CUDA>:--expt-relaxed-constexpr>)  # kernels share the host's constexpr functions
