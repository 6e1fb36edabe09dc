# Cross-compiles for 64-bit Windows with Debian's or Ubuntu's g++-mingw-w64-x86-64-posix; programs run under wine.
# Libraries that are not the compiler's come from MOI_WINDOWS_ROOT, which tests/windows.sh makes.
set(CMAKE_SYSTEM_NAME Windows)
set(CMAKE_SYSTEM_PROCESSOR x86_64)
set(CMAKE_C_COMPILER x86_64-w64-mingw32-gcc-posix)
set(CMAKE_CXX_COMPILER x86_64-w64-mingw32-g++-posix)
set(CMAKE_RC_COMPILER x86_64-w64-mingw32-windres)

get_filename_component(root "${CMAKE_CURRENT_LIST_DIR}/../build/windows-root" ABSOLUTE)
set(MOI_WINDOWS_ROOT "${root}" CACHE PATH "Libraries for Windows: a prefix with include and lib")
list(APPEND CMAKE_TRY_COMPILE_PLATFORM_VARIABLES MOI_WINDOWS_ROOT)

set(CMAKE_FIND_ROOT_PATH "${MOI_WINDOWS_ROOT}" /usr/x86_64-w64-mingw32)
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_INCLUDE ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_PACKAGE BOTH) # a CMAKE_PREFIX_PATH is where it says
set(ENV{PKG_CONFIG_LIBDIR} "${MOI_WINDOWS_ROOT}/lib/pkgconfig")

find_program(MOI_WINE NAMES wine64 wine PATHS /usr/lib/wine NO_CMAKE_FIND_ROOT_PATH)
if(MOI_WINE)
  set(CMAKE_CROSSCOMPILING_EMULATOR "${MOI_WINE}")
endif()
