# The golden data of the tests: unpacks test/golden/golden.tar.xz into <build>/golden when the archive has changed.
# The stamp holds the archive's hash; it is written last, so an interrupted unpack is done again.
set(golden_archive ${PROJECT_SOURCE_DIR}/test/golden/golden.tar.xz)
set(golden_dir ${PROJECT_BINARY_DIR}/golden)
set(golden_stamp ${PROJECT_BINARY_DIR}/golden.stamp)
set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${golden_archive})
file(SHA256 ${golden_archive} golden_hash)
set(golden_have "")
if(EXISTS ${golden_stamp})
  file(READ ${golden_stamp} golden_have)
endif()
if(IS_SYMLINK ${golden_dir} OR NOT IS_DIRECTORY ${golden_dir}/families OR NOT golden_have STREQUAL golden_hash)
  message(STATUS "Unpacking the golden data into ${golden_dir}")
  file(REMOVE ${golden_stamp})
  if(IS_SYMLINK ${golden_dir})
    file(REMOVE ${golden_dir})  # the link alone, never what it points to
  else()
    file(REMOVE_RECURSE ${golden_dir})
  endif()
  file(ARCHIVE_EXTRACT INPUT ${golden_archive} DESTINATION ${golden_dir})
  file(WRITE ${golden_stamp} ${golden_hash})
endif()

# What the archive has wrong lies right in corrected/, whose README says why.
set(golden_corrected ${PROJECT_SOURCE_DIR}/test/golden/corrected)
configure_file(${golden_corrected}/falcon_rw_alibi.safetensors
  ${golden_dir}/families/falcon_rw_alibi/golden.safetensors COPYONLY)
