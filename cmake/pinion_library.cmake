# One target per folder, with its level. A library may depend only on libraries of a lower level; the check runs at
# configure time, and tools/check_levels.py checks the includes themselves.
#
#   pinion_library(NAME text LEVEL 1 SRCS a.cc DEPS base TESTS a_test.cc [LIBS external] [PRIVATE_LIBS external]
#                  [PRECOMPILE <header>] [UNITY])
# UNITY: its files are compiled a dozen at a time, which takes a third of the time where they are many and small; their
# anonymous namespaces are then one.

# Headers that cost seconds in every file that needs them are compiled once: json and fmt for the libraries, GoogleTest
# for the tests, CLI11 and Asio where they are used (pinion_precompile).
set(PINION_LIBRARY_HEADERS <algorithm> <filesystem> <functional> <map> <memory> <span> <string> <variant> <vector>
  <fmt/format.h> <nlohmann/json.hpp>)

function(pinion_precompile target) # pinion_precompile(TARGET HEADER...): beside the libraries' common headers
  target_precompile_headers(${target} PRIVATE ${PINION_LIBRARY_HEADERS} ${ARGN})
endfunction()

function(pinion_library)
  cmake_parse_arguments(A "UNITY" "NAME;LEVEL" "SRCS;DEPS;LIBS;PRIVATE_LIBS;PRECOMPILE;TESTS" ${ARGN})
  string(REPLACE "/" "_" id ${A_NAME})
  set(target pinion_${id})
  if(A_SRCS)
    add_library(${target} STATIC ${A_SRCS})
    set_target_properties(${target} PROPERTIES UNITY_BUILD ${A_UNITY} UNITY_BUILD_BATCH_SIZE 12)
    set(scope PUBLIC)
  else()
    add_library(${target} INTERFACE)
    set(scope INTERFACE)
  endif()
  set_property(TARGET ${target} PROPERTY PINION_LEVEL ${A_LEVEL})
  target_include_directories(${target} ${scope} ${PROJECT_SOURCE_DIR}/src)
  target_link_libraries(${target} ${scope} ${A_LIBS})
  if(A_SRCS)
    target_link_libraries(${target} PRIVATE ${A_PRIVATE_LIBS} pinion_warnings)
    if(A_PRECOMPILE OR A_NAME STREQUAL base)
      pinion_precompile(${target} ${A_PRECOMPILE})
    elseif(base IN_LIST A_DEPS)
      target_precompile_headers(${target} REUSE_FROM pinion_base)
    endif()
  endif()
  foreach(dep ${A_DEPS})
    string(REPLACE "/" "_" dep_id ${dep})
    if(NOT TARGET pinion_${dep_id})
      message(FATAL_ERROR "${A_NAME} depends on ${dep}, which is not defined yet: list lower levels first")
    endif()
    get_property(dep_level TARGET pinion_${dep_id} PROPERTY PINION_LEVEL)
    if(NOT dep_level LESS A_LEVEL)
      message(FATAL_ERROR "${A_NAME} [${A_LEVEL}] may not depend on ${dep} [${dep_level}]: only lower levels are allowed")
    endif()
    target_link_libraries(${target} ${scope} pinion_${dep_id})
  endforeach()
  if(A_TESTS AND PINION_BUILD_TESTS)
    add_executable(test_${id} ${A_TESTS})
    target_link_libraries(test_${id} PRIVATE ${target} GTest::gmock GTest::gtest_main pinion_warnings)
    target_precompile_headers(test_${id} REUSE_FROM pinion_test_headers)
    target_compile_definitions(test_${id} PRIVATE
      PINION_SOURCE_DIR="${PROJECT_SOURCE_DIR}" PINION_GOLDEN_DIR="${PROJECT_BINARY_DIR}/golden")
    add_test(NAME ${id} COMMAND test_${id})
  endif()
endfunction()

# Only its precompiled headers are used, by the tests; a program, because programs and libraries differ in -fpie.
if(PINION_BUILD_TESTS)
  file(CONFIGURE OUTPUT ${PROJECT_BINARY_DIR}/test_headers.cc CONTENT "int main() {}\n")
  add_executable(pinion_test_headers EXCLUDE_FROM_ALL ${PROJECT_BINARY_DIR}/test_headers.cc)
  target_link_libraries(pinion_test_headers PRIVATE pinion_base GTest::gmock pinion_warnings)
  pinion_precompile(pinion_test_headers <gmock/gmock.h> <gtest/gtest.h>)
endif()
