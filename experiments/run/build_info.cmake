cmake_minimum_required(VERSION 3.25)

# Writes OUT, a header that names the sources and flags of this build; touches it only when it changes.
execute_process(COMMAND git -C ${SOURCE} rev-parse HEAD OUTPUT_VARIABLE COMMIT
                OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET RESULT_VARIABLE FAILED)
if(FAILED)
  set(COMMIT unknown)
endif()
execute_process(COMMAND git -C ${SOURCE} status --porcelain --untracked-files=no
                OUTPUT_VARIABLE CHANGES ERROR_QUIET)
set(DIRTY false)
if(CHANGES)
  set(DIRTY true)
endif()
file(CONFIGURE OUTPUT ${OUT} @ONLY CONTENT
"#pragma once
inline constexpr const char kWeftVersion[] = \"@VERSION@\";
inline constexpr const char kGitCommit[] = \"@COMMIT@\";
inline constexpr bool kGitDirty = @DIRTY@;
inline constexpr const char kCompiler[] = \"@COMPILER@\";
inline constexpr const char kCompilerFlags[] = R\"(@FLAGS@)\";
inline constexpr const char kBuildType[] = \"@BUILD_TYPE@\";
")
