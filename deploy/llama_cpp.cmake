# Read by CMake when llama-cpp-python is built (-DCMAKE_PROJECT_llama_cpp_INCLUDE=this file): leave
# out llama.cpp's common library and HTTP client, which edgeft never loads. llama-cpp-python sets
# the option's cache entry by force; a plain variable goes before it (CMake policy CMP0126).
set(LLAMA_BUILD_COMMON OFF)
