# What Windows needs beyond the rest. Included once moiety_flags, moiety_shared and moiety_static exist.

if(MINGW)
  # %zu and the like in msvcrt's printf too.
  target_compile_definitions(moiety_flags INTERFACE __USE_MINGW_ANSI_STDIO=1)
  # Programs and the DLL need Windows' own DLLs only.
  target_link_options(moiety_flags INTERFACE -static)
  if(CMAKE_C_COMPILER_ID STREQUAL GNU AND CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
    # gcc does not align the stack for 32- and 64-byte vectors on 64-bit Windows (GCC bug 54412) and yet uses aligned
    # moves there: the assembler makes unaligned ones of them, which are as fast on every CPU with AVX.
    include(CheckCCompilerFlag)
    check_c_compiler_flag(-Wa,-muse-unaligned-vector-move MOI_UNALIGNED_VECTOR_MOVE)
    if(NOT MOI_UNALIGNED_VECTOR_MOVE)
      message(FATAL_ERROR "the AVX kernels need an assembler with -muse-unaligned-vector-move: binutils 2.38 or newer")
    endif()
    target_compile_options(moiety_flags INTERFACE -Wa,-muse-unaligned-vector-move)
  endif()
endif()

# The DLL exports what the header declares. A list rather than dllexport, because the static library has the same objects.
file(STRINGS include/moiety.h lines)
list(FILTER lines EXCLUDE REGEX "^ *#")
string(REGEX MATCHALL "MOI_API [^();]*\\(" declarations "${lines}")
string(REGEX MATCHALL "moi_[a-z0-9_]+\\(" names "${declarations}")
string(REGEX REPLACE "\\(" "" names "${names}")
list(JOIN names "\n  " names)
file(CONFIGURE OUTPUT "${PROJECT_BINARY_DIR}/moiety.def" CONTENT "EXPORTS\n  ${names}\n")
target_sources(moiety_shared PRIVATE "${PROJECT_BINARY_DIR}/moiety.def")
target_compile_definitions(moiety_shared INTERFACE MOI_SHARED)
set_target_properties(moiety_shared PROPERTIES PREFIX "" RUNTIME_OUTPUT_DIRECTORY "${PROJECT_BINARY_DIR}/bin")
