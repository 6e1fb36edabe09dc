# Compiles vulkan/shaders/*.comp to SPIR-V and writes them, with the list of formats, as C into the build tree.
#
# Rows of integer dot products (dot_*.comp) use an instruction by GL_EXT_spirv_intrinsics. A compiler that does not know it
# makes a library without them.
#
# moi_spirv(OUT_C <file> SHADERS <file.comp>... [FORMATS <name>...] [SETS <name>...]): files called gemm_*.comp are compiled
# for each format, with MOI_FORMAT_<NAME> defined, the others once. Those of the names in SETS are compiled once more, with
# MOI_SETS, for devices without bufferDeviceAddress.

function(moi_formats out) # the formats of moiety.h's MOI_FORMAT_MAP, as NAME=name
  file(READ "${PROJECT_SOURCE_DIR}/include/moiety.h" text)
  string(REGEX MATCHALL "X\\([A-Z0-9_]+, [0-9]+, \"[a-z0-9_]+\", [NK]," rows "${text}")
  set(formats)
  foreach(row ${rows})
    string(REGEX REPLACE "X\\(([A-Z0-9_]+), [0-9]+, \"([a-z0-9_]+)\".*" "\\1=\\2" pair "${row}")
    list(APPEND formats "${pair}")
  endforeach()
  set(${out} "${formats}" PARENT_SCOPE)
endfunction()

function(moi_glslc_knows_intrinsics out)
  if(NOT MOI_GLSLC_KNOWS_INTRINSICS STREQUAL MOI_GLSLC)
    set(probe "${PROJECT_BINARY_DIR}/intrinsics.comp")
    file(WRITE "${probe}" "#version 460\n#extension GL_EXT_spirv_intrinsics : require\n"
         "spirv_instruction(extensions = [\"SPV_KHR_integer_dot_product\"], capabilities = [6018, 6019], id = 4450)\n"
         "int sdot(int a, int b, spirv_literal int format);\n"
         "layout(binding = 0) buffer B { int v[]; };\nvoid main() { v[0] = sdot(v[1], v[2], 0); }\n")
    execute_process(COMMAND "${MOI_GLSLC}" --target-env=vulkan1.2 -o "${probe}.spv" "${probe}" RESULT_VARIABLE failed
                    OUTPUT_QUIET ERROR_QUIET)
    set(known "${MOI_GLSLC}")
    if(failed)
      set(known "")
    endif()
    set(MOI_GLSLC_KNOWS_INTRINSICS "${known}" CACHE INTERNAL "the glslc that was found to know GL_EXT_spirv_intrinsics")
  endif()
  set(${out} "${MOI_GLSLC_KNOWS_INTRINSICS}" PARENT_SCOPE)
endfunction()

function(moi_spirv)
  cmake_parse_arguments(A "" "OUT_C;PREFIX" "SHADERS;FORMATS;SETS" ${ARGN})
  set(folder "${CMAKE_CURRENT_BINARY_DIR}/spirv")
  file(MAKE_DIRECTORY "${folder}")
  set(dots ${A_SHADERS})
  list(FILTER dots INCLUDE REGEX "/dot_[^/]*$")
  if(dots)
    moi_glslc_knows_intrinsics(known)
    if(NOT known)
      list(REMOVE_ITEM A_SHADERS ${dots})
      message(STATUS "MOI_VULKAN: without the rows of integer dot products, ${MOI_GLSLC} does not know GL_EXT_spirv_intrinsics")
    endif()
  endif()
  set(text "#include \"vulkan/shaders.h\"\n\n")
  set(table "")
  set(outputs)
  foreach(shader ${A_SHADERS})
    get_filename_component(stem "${shader}" NAME_WE)
    set(variants "=")
    if(stem MATCHES "^gemm_")
      set(variants ${A_FORMATS})
    endif()
    set(ways 0)
    if(stem IN_LIST A_SETS)
      set(ways 0 1)
    endif()
    foreach(variant ${variants})
      string(REGEX REPLACE "=.*" "" format "${variant}")
      string(REGEX REPLACE ".*=" "" name "${variant}")
      foreach(sets ${ways})
        set(full "${stem}")
        set(define)
        if(format)
          set(full "${stem}_${name}")
          set(define -DMOI_FORMAT_${format} "-DMOI_AT=MOI_AT_${format}")
        endif()
        set(array "${full}")
        if(sets)
          set(array "${full}_sets")
          list(APPEND define -DMOI_SETS)
        endif()
        set(output "${folder}/${array}.inc")
        add_custom_command(OUTPUT "${output}" VERBATIM
                           COMMAND "${MOI_GLSLC}" -Os --target-env=vulkan1.2 -mfmt=num ${define}
                                   -I "${PROJECT_SOURCE_DIR}/vulkan/shaders" -MD -MF "${output}.d" -MT "${output}"
                                   -o "${output}" "${shader}"
                           DEPENDS "${shader}" DEPFILE "${output}.d" COMMENT "SPIR-V ${array}")
        list(APPEND outputs "${output}")
        string(APPEND text "static const uint32_t ${array}[] = {\n#include \"${output}\"\n};\n")
        string(APPEND table "    {\"${full}\", ${array}, sizeof ${array} / 4, ${sets}},\n")
      endforeach()
    endforeach()
  endforeach()
  string(APPEND text "\nconst moi_vk_shader ${A_PREFIX}shaders[] = {\n${table}};\nconst uint32_t ${A_PREFIX}shader_count = "
                     "sizeof ${A_PREFIX}shaders / sizeof ${A_PREFIX}shaders[0];\n")
  file(GENERATE OUTPUT "${A_OUT_C}" CONTENT "${text}")
  set_source_files_properties("${A_OUT_C}" PROPERTIES OBJECT_DEPENDS "${outputs}")
endfunction()
