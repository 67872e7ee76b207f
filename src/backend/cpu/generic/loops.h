// What every generic source uses. Included first inside an ISA's namespace.

#define PINION_UNROLL _Pragma("GCC unroll 16")

constexpr int64_t least(int64_t a, int64_t b) {
  return a < b ? a : b;
}
constexpr int64_t most(int64_t a, int64_t b) {
  return a > b ? a : b;
}
