# The golden data of the tests: unpacks the archives under test/golden into <build>/golden when one has changed. The stamp
# of each holds its hash; it is written last, so an interrupted unpack is done again.
set(golden_dir ${PROJECT_BINARY_DIR}/golden)

# golden_unpack(ARCHIVE DIR): DIR holds nothing but what the archive has.
function(golden_unpack archive dir)
  set(stamp ${dir}.stamp)
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${archive})
  file(SHA256 ${archive} hash)
  set(have "")
  if(EXISTS ${stamp})
    file(READ ${stamp} have)
  endif()
  if(NOT IS_SYMLINK ${dir} AND IS_DIRECTORY ${dir} AND have STREQUAL hash)
    return()
  endif()
  message(STATUS "Unpacking the golden data into ${dir}")
  file(REMOVE ${stamp})
  if(IS_SYMLINK ${dir})
    file(REMOVE ${dir})  # the link alone, never what it points to
  else()
    file(REMOVE_RECURSE ${dir})
  endif()
  file(ARCHIVE_EXTRACT INPUT ${archive} DESTINATION ${dir})
  file(WRITE ${stamp} ${hash})
endfunction()

golden_unpack(${PROJECT_SOURCE_DIR}/test/golden/golden.tar.xz ${golden_dir})
golden_unpack(${PROJECT_SOURCE_DIR}/test/golden/quantized/checkpoints.tar.xz ${golden_dir}/quantized)
golden_unpack(${PROJECT_SOURCE_DIR}/test/golden/jinja.tar.xz ${golden_dir}/jinja)
