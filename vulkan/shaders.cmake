# Compiles vulkan/shaders/*.comp to SPIR-V and writes them, with the list of formats, as C into the build tree.
#
# moi_spirv(OUT_C <file> SHADERS <file.comp>... [FORMATS <name>...]): files called gemm_*.comp are compiled for each format,
# with MOI_FORMAT_<NAME> defined, the others once.

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

function(moi_spirv)
  cmake_parse_arguments(A "" "OUT_C;PREFIX" "SHADERS;FORMATS" ${ARGN})
  set(folder "${CMAKE_CURRENT_BINARY_DIR}/spirv")
  file(MAKE_DIRECTORY "${folder}")
  set(text "#include \"vulkan/shaders.h\"\n\n")
  set(table "")
  set(outputs)
  foreach(shader ${A_SHADERS})
    get_filename_component(stem "${shader}" NAME_WE)
    set(variants "=")
    if(stem MATCHES "^gemm_")
      set(variants ${A_FORMATS})
    endif()
    foreach(variant ${variants})
      string(REGEX REPLACE "=.*" "" format "${variant}")
      string(REGEX REPLACE ".*=" "" name "${variant}")
      set(full "${stem}")
      set(define)
      if(format)
        set(full "${stem}_${name}")
        set(define -DMOI_FORMAT_${format} "-DMOI_AT=MOI_AT_${format}")
      endif()
      set(output "${folder}/${full}.inc")
      add_custom_command(OUTPUT "${output}" VERBATIM
                         COMMAND "${MOI_GLSLC}" -Os --target-env=vulkan1.2 -mfmt=num ${define}
                                 -I "${PROJECT_SOURCE_DIR}/vulkan/shaders" -MD -MF "${output}.d" -MT "${output}"
                                 -o "${output}" "${shader}"
                         DEPENDS "${shader}" DEPFILE "${output}.d" COMMENT "SPIR-V ${full}")
      list(APPEND outputs "${output}")
      string(APPEND text "static const uint32_t ${full}[] = {\n#include \"${output}\"\n};\n")
      string(APPEND table "    {\"${full}\", ${full}, sizeof ${full} / 4},\n")
    endforeach()
  endforeach()
  string(APPEND text "\nconst moi_vk_shader ${A_PREFIX}shaders[] = {\n${table}};\nconst uint32_t ${A_PREFIX}shader_count = "
                     "sizeof ${A_PREFIX}shaders / sizeof ${A_PREFIX}shaders[0];\n")
  file(GENERATE OUTPUT "${A_OUT_C}" CONTENT "${text}")
  set_source_files_properties("${A_OUT_C}" PROPERTIES OBJECT_DEPENDS "${outputs}")
endfunction()
