# The repository's own checks as tests: the levels, and the checker against planted violations.
find_package(Python3 COMPONENTS Interpreter REQUIRED)
add_test(NAME levels COMMAND ${Python3_EXECUTABLE} ${PROJECT_SOURCE_DIR}/tools/check_levels.py)
add_test(NAME levels_self_test COMMAND ${Python3_EXECUTABLE} ${PROJECT_SOURCE_DIR}/tools/check_levels_test.py)
set_tests_properties(levels_self_test PROPERTIES ENVIRONMENT PYTHONDONTWRITEBYTECODE=1)
