# Warnings and sanitizers for Pinion's own code (never for the libraries it includes).
# g++ 12 reports optional and variant members as maybe uninitialised, string assignments as overlapping, and copies of
# strings as out of bounds, where they are not: those warnings are off.
add_library(pinion_warnings INTERFACE)
target_compile_options(pinion_warnings INTERFACE
  "$<$<COMPILE_LANGUAGE:C,CXX>:-Wall;-Wextra;-Wpedantic;-Wno-missing-field-initializers;-Wno-maybe-uninitialized;-Wno-restrict;-Wno-array-bounds;-Werror=return-type>"
  "$<$<COMPILE_LANG_AND_ID:CXX,GNU>:-Wno-stringop-overflow;-Wno-stringop-overread>"
  "$<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=-Wall,-Wextra,-Wno-missing-field-initializers>")
# Sanitizers' checks are what takes time to compile: -O1 and line numbers alone halve it.
if(PINION_SANITIZE)
  add_compile_options(-O1 -g1)
endif()
if(PINION_SANITIZE STREQUAL "address")
  add_compile_options(-fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer)
  add_link_options(-fsanitize=address,undefined)
elseif(PINION_SANITIZE STREQUAL "thread")
  add_compile_options(-fsanitize=thread -fno-omit-frame-pointer)
  add_link_options(-fsanitize=thread)
elseif(PINION_SANITIZE)
  message(FATAL_ERROR "PINION_SANITIZE=${PINION_SANITIZE}: use address or thread")
endif()
