# cmake -DOUT=FILE.c -DCSS=FILE -DJS=FILE -P embed.cmake: the files as C arrays.
set(text "/* Made by bench/report/embed.cmake. */\n")
foreach(name css js)
  string(TOUPPER ${name} path)
  file(READ "${${path}}" hex HEX)
  string(REGEX REPLACE "(..)" "0x\\1," bytes "${hex}")
  string(APPEND text "extern const char moi_report_${name}[];\nconst char moi_report_${name}[] = {${bytes}0};\n")
endforeach()
file(WRITE "${OUT}" "${text}")
