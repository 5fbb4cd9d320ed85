# Read by CMake when llama-cpp-python is built (-DCMAKE_PROJECT_llama_cpp_INCLUDE=this file): leave
# out llama.cpp's common library and HTTP client, which edgeft never loads. llama-cpp-python sets
# the option's cache entry by force; a plain variable goes before it (CMake policy CMP0126).
set(LLAMA_BUILD_COMMON OFF)

# GCC before 11.5, 12.4, 13.3 and 14 leaves out what llama.cpp writes of AMX's configuration
# (https://gcc.gnu.org/PR114098), and its products crash. -march=native would bring them.
include(CheckCXXCompilerFlag)
check_cxx_compiler_flag(-mno-amx-int8 HAS_AMX_FLAGS)
if(HAS_AMX_FLAGS)
    foreach(FLAG -mno-amx-tile -mno-amx-int8 -mno-amx-bf16)
        add_compile_options($<$<COMPILE_LANGUAGE:C,CXX>:${FLAG}>)
    endforeach()
endif()
