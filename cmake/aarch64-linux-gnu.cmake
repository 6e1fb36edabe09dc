# Cross-compiles for AArch64 Linux with Debian's or Ubuntu's g++-aarch64-linux-gnu; tests run under qemu-user. Libraries
# that are not the compiler's come from MOI_AARCH64_ROOT, which tests/aarch64.sh makes.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_C_COMPILER aarch64-linux-gnu-gcc)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)

get_filename_component(root "${CMAKE_CURRENT_LIST_DIR}/../build/aarch64-root" ABSOLUTE)
set(MOI_AARCH64_ROOT "${root}" CACHE PATH "Libraries of the AArch64 system: its / with usr/include, usr/lib, lib")
list(APPEND CMAKE_TRY_COMPILE_PLATFORM_VARIABLES MOI_AARCH64_ROOT)

set(CMAKE_FIND_ROOT_PATH "${MOI_AARCH64_ROOT}" /usr/aarch64-linux-gnu)
set(CMAKE_LIBRARY_ARCHITECTURE aarch64-linux-gnu)
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_INCLUDE ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_PACKAGE BOTH) # a CMAKE_PREFIX_PATH is where it says
set(ENV{PKG_CONFIG_LIBDIR} "${MOI_AARCH64_ROOT}/usr/lib/aarch64-linux-gnu/pkgconfig")
set(ENV{PKG_CONFIG_SYSROOT_DIR} "${MOI_AARCH64_ROOT}")

set(CMAKE_CROSSCOMPILING_EMULATOR qemu-aarch64 -cpu max -L "${MOI_AARCH64_ROOT}")
