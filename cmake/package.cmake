# `cmake --install`: the program, one library libpinion.a of what models are compiled and run with, its headers, and
# what find_package(Pinion) reads. The server's and the verbs' code stays in the program.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

set(folders base tensor text checkpoint graph models quant backend backend/reference backend/cpu backend/cuda backend/all
  engine compiler runtime session)
set(objects)
foreach(folder ${folders})
  string(REPLACE "/" "_" id ${folder})
  if(TARGET pinion_${id})
    get_target_property(type pinion_${id} TYPE)
    if(type STREQUAL STATIC_LIBRARY)
      list(APPEND objects $<TARGET_OBJECTS:pinion_${id}>)
    endif()
  endif()
endforeach()
add_library(pinion_package STATIC ${objects})
set_target_properties(pinion_package PROPERTIES OUTPUT_NAME pinion LINKER_LANGUAGE CXX
  ARCHIVE_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/package)

set(PINION_PACKAGE_CUDA ${PINION_CUDA})
set(destination ${CMAKE_INSTALL_LIBDIR}/cmake/Pinion)
configure_package_config_file(${CMAKE_CURRENT_LIST_DIR}/PinionConfig.cmake.in ${PROJECT_BINARY_DIR}/package/PinionConfig.cmake
  INSTALL_DESTINATION ${destination} PATH_VARS CMAKE_INSTALL_LIBDIR CMAKE_INSTALL_INCLUDEDIR)
write_basic_package_version_file(${PROJECT_BINARY_DIR}/package/PinionConfigVersion.cmake COMPATIBILITY SameMinorVersion)

install(TARGETS pinion RUNTIME)
install(TARGETS pinion_package ARCHIVE)
install(DIRECTORY ${PROJECT_SOURCE_DIR}/src/ DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/pinion FILES_MATCHING PATTERN "*.h"
  PATTERN cli EXCLUDE PATTERN server EXCLUDE PATTERN calibrate EXCLUDE PATTERN kernels EXCLUDE PATTERN generic EXCLUDE
  PATTERN ptx EXCLUDE PATTERN tile EXCLUDE)
install(FILES ${PROJECT_BINARY_DIR}/package/PinionConfig.cmake ${PROJECT_BINARY_DIR}/package/PinionConfigVersion.cmake
  DESTINATION ${destination})
