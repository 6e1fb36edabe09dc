# Compiles cuda/kernels/*.cu for every architecture and embeds them, with the list of formats, in C of the build tree.
#
# moi_cuda_images(OUT_C <file> PREFIX <of the two names> KERNELS <file.cu>... [FORMATS <NAME=name>...]
# [MACHINE_CODE]): files called gemm_*.cu are
# compiled for each format, with MOI_FORMAT_<NAME> defined, the others once. Without MACHINE_CODE the images are empty: the
# host's side alone, for tests that run the kernels elsewhere.

option(MOI_CUDA_QUICK "most weight formats, and the largest kernels of attention, for the last architecture alone, as PTX where the kernel is for one: for tests of the build" OFF)
set(MOI_CUDA_ARCHITECTURES 75 80 86 89 90 100 120 CACHE STRING "architectures of the CUDA kernels; PTX of the last serves newer ones")

# Formats whose rows do not lie along k: order K of MOI_FORMAT_MAP.
file(READ "${PROJECT_SOURCE_DIR}/include/moiety.h" text)
string(REGEX MATCHALL "X\\([A-Z0-9_]+, [0-9]+, \"[a-z0-9_]+\", K," MOI_CUDA_ALONG_N "${text}")
string(REGEX REPLACE "X\\(([A-Z0-9_]+)[^;]*" "\\1" MOI_CUDA_ALONG_N "${MOI_CUDA_ALONG_N}")

# Files that are not for every architecture or format.
set(MOI_CUDA_ONLY_gemm_f16mma 75) # newer ones have gemm_mma; the PTX is for who asks for this row there
set(MOI_CUDA_ONLY_gemm_fp8mma 89 90 100 120)
set(MOI_CUDA_FORMATS_gemm_fp8mma FP8=fp8 FP8_B128=fp8_b128)
set(MOI_CUDA_ONLY_gemm_mxmma 120a) # with the letter: instructions of that architecture alone
set(MOI_CUDA_FORMATS_gemm_mxmma MXFP4=mxfp4 MXFP4_GGUF=mxfp4_gguf)

# Code for each of these architectures that are wanted and known, and PTX of the last unless it has a letter and no newer one
# would take it: in out, and for the last alone in out_last; empty if there is none.
function(moi_cuda_code out out_last known help)
  set(code)
  set(one)
  foreach(arch ${ARGN})
    string(REGEX REPLACE "[a-z]$" "" number "${arch}")
    if(number IN_LIST MOI_CUDA_ARCHITECTURES AND known MATCHES "sm_${number}[^0-9a-z]")
      list(APPEND code "-gencode=arch=compute_${arch},code=sm_${arch}")
      set(last ${arch})
    endif()
  endforeach()
  if(code)
    set(one "-gencode=arch=compute_${last},code=sm_${last}")
    if(NOT last MATCHES "[a-z]$")
      list(APPEND code "-gencode=arch=compute_${last},code=compute_${last}")
    endif()
    if(help MATCHES "--compress-mode") # older toolkits compress in one way alone
      list(APPEND code -compress-mode=size)
      list(APPEND one -compress-mode=size)
    endif()
  endif()
  set(${out} "${code}" PARENT_SCOPE)
  set(${out_last} "${one}" PARENT_SCOPE)
endfunction()
# Formats of blocks, whose codes are whole numbers: all but those of MOI_FORMAT_MAP with one element a block.
string(REGEX MATCHALL "X\\([A-Z0-9_]+, [0-9]+, \"[a-z0-9_]+\", [NK], 1, 1," MOI_CUDA_PLAIN "${text}")
string(REGEX REPLACE "X\\(([A-Z0-9_]+)[^;]*" "\\1" MOI_CUDA_PLAIN "${MOI_CUDA_PLAIN}")

function(moi_cuda_formats out) # formats as NAME=name
  set(every "")
  set(but_f32 "")
  set(along_k "")
  set(blocks "")
  foreach(format ${ARGN})
    string(REGEX REPLACE "(.*)=(.*)" "X(\\1, \"\\2\", __VA_ARGS__) " row "${format}")
    string(REGEX REPLACE "=.*" "" name "${format}")
    string(APPEND every "${row}")
    if(NOT name STREQUAL F32)
      string(APPEND but_f32 "${row}")
    endif()
    if(NOT name IN_LIST MOI_CUDA_ALONG_N)
      string(APPEND along_k "${row}")
    endif()
    if(NOT name IN_LIST MOI_CUDA_PLAIN)
      string(APPEND blocks "${row}")
    endif()
  endforeach()
  file(GENERATE OUTPUT "${out}" CONTENT "#define MOI_CU_EVERY_FORMAT(X, ...) ${every}
#define MOI_CU_EVERY_FORMAT_BUT_F32(X, ...) ${but_f32}
#define MOI_CU_EVERY_FORMAT_ALONG_K(X, ...) ${along_k}
#define MOI_CU_EVERY_FORMAT_OF_BLOCKS(X, ...) ${blocks}\n")
endfunction()

function(moi_cuda_images)
  cmake_parse_arguments(A "MACHINE_CODE" "OUT_C;PREFIX" "KERNELS;FORMATS" ${ARGN})
  set(folder "${CMAKE_CURRENT_BINARY_DIR}/cuda")
  file(MAKE_DIRECTORY "${folder}")
  set(code)
  if(A_MACHINE_CODE) # older toolkits know fewer architectures
    execute_process(COMMAND "${MOI_NVCC}" --list-gpu-code OUTPUT_VARIABLE known)
    execute_process(COMMAND "${MOI_NVCC}" --help OUTPUT_VARIABLE help)
    foreach(arch ${MOI_CUDA_ARCHITECTURES})
      if(NOT known MATCHES "sm_${arch}[^0-9a-z]")
        message(STATUS "MOI_CUDA_ARCHITECTURES: ${arch} left out, this nvcc does not know it")
      endif()
    endforeach()
    moi_cuda_code(code one "${known}" "${help}" ${MOI_CUDA_ARCHITECTURES})
    if(NOT code)
      message(FATAL_ERROR "MOI_CUDA_ARCHITECTURES: nvcc knows none of ${MOI_CUDA_ARCHITECTURES}")
    endif()
  endif()
  set(strict)
  if(MOI_WERROR) # registers that spill, arrays in local memory: not in this library's kernels
    set(strict -Werror=all-warnings -Xptxas=-warn-spills,-warn-lmem-usage,-Werror)
  endif()
  set(text "#include \"cuda/images.h\"\n\n")
  set(table "")
  set(outputs)
  foreach(kernel ${A_KERNELS})
    get_filename_component(stem "${kernel}" NAME_WE)
    set(variants "=")
    if(stem MATCHES "^gemm_")
      set(variants ${A_FORMATS})
    endif()
    if(MOI_CUDA_FORMATS_${stem})
      set(variants ${MOI_CUDA_FORMATS_${stem}})
    endif()
    set(stem_code ${code})
    set(stem_one ${one})
    if(A_MACHINE_CODE AND MOI_CUDA_ONLY_${stem})
      moi_cuda_code(stem_code stem_one "${known}" "${help}" ${MOI_CUDA_ONLY_${stem}})
      if(NOT stem_code)
        continue() # no image: its rows are refused
      endif()
    endif()
    foreach(variant ${variants})
      string(REGEX REPLACE "=.*" "" format "${variant}")
      string(REGEX REPLACE ".*=" "" name "${variant}")
      set(full "${stem}")
      set(define)
      if(format)
        set(full "${stem}_${name}")
        set(define -DMOI_FORMAT_${format} "-DMOI_AT=MOI_AT_${format}" "-DMOI_FORMAT_NAME=${name}")
      endif()
      if(NOT A_MACHINE_CODE)
        string(APPEND table "    {\"${full}\", (const uint8_t *)\"\"},\n")
        continue()
      endif()
      set(output "${folder}/${full}.fatbin")
      set(which ${stem_code})
      if(MOI_CUDA_QUICK AND (stem MATCHES "^attention_(tile|mma|split|split_mma)$" OR
                             (format AND NOT format MATCHES "^(BF16|Q4_K|MXFP4|FP8_B128)$")))
        set(which ${stem_one})
        if(MOI_CUDA_ONLY_${stem})
          string(REPLACE "code=sm_" "code=compute_" which "${which}")
        endif()
      endif()
      # -fmad=false: the same source gives the same bits as from every other compiler; what wants FMA says so
      add_custom_command(OUTPUT "${output}" VERBATIM
                         COMMAND "${MOI_NVCC}" -fatbin -O3 -std=c++17 -fmad=false -diag-suppress=550,177 ${strict} ${which} ${define}
                                 -I "${PROJECT_SOURCE_DIR}" -MD -MF "${output}.d" -MT "${output}"
                                 -o "${output}" "${kernel}"
                         DEPENDS "${kernel}" DEPFILE "${output}.d" COMMENT "CUDA ${full}")
      list(APPEND outputs "${output}")
      string(APPEND text "__asm__(\".pushsection .rodata\\n.balign 64\\nmoi_cu_${full}:\\n.incbin \\\"${output}\\\"\\n"
                         ".byte 0\\n.popsection\\n\");\nextern const uint8_t moi_cu_${full}[] "
                         "__attribute__((visibility(\"hidden\")));\n")
      string(APPEND table "    {\"${full}\", moi_cu_${full}},\n")
    endforeach()
  endforeach()
  string(APPEND text "\nconst moi_cu_image ${A_PREFIX}images[] = {\n${table}};\nconst uint32_t ${A_PREFIX}image_count = "
                     "sizeof ${A_PREFIX}images / sizeof ${A_PREFIX}images[0];\n")
  file(GENERATE OUTPUT "${A_OUT_C}" CONTENT "${text}")
  set_source_files_properties("${A_OUT_C}" PROPERTIES OBJECT_DEPENDS "${outputs}")
endfunction()
