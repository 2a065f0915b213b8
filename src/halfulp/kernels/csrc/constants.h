/* Written by kernels/generate.py from kernels/constants.py. */
#ifndef CONSTANTS_H
#define CONSTANTS_H

#define HU_ABI 5
#define HU_CAP 1024
#define HU_GROUP 512
#define HU_UNIT 64
#define HU_MAX_SLOTS 8
#define HU_MAX_SUMS 8
#define HU_MAX_REGISTERS 32
#define HU_MAX_UNIFORMS 64
#define HU_STRETCHES 16
#define HU_PARTS 4
#define HU_MAX_VECTORS 2
#define HU_TREE 6
#define GOLDEN 0x9e3779b9u
#define HIGH_WORD 0xbb67ae85u
#define MUL0 0x21f0aaadu
enum {
    HU_FLOAT32 = 0, HU_BFLOAT16 = 1, HU_FLOAT16 = 2, HU_FLOAT = 3, HU_INT = 4, HU_BOOK = 5,
    HU_FINE = 6,
};
enum {
    HU_SCALE_NONE = 0, HU_SCALE_POW2 = 1, HU_SCALE_FP32 = 2,
};
enum {
    HU_PER_BLOCK = 0, HU_PER_ROW = 1, HU_PER_TENSOR = 2,
};
enum {
    HU_MASTER_NONE = 0, HU_MASTER_REMAINDER8 = 8, HU_MASTER_REMAINDER16 = 16, HU_MASTER_FP32 = 32,
};
enum {
    HU_READS_PARAM = 1, HU_WRITES_PARAM = 2,
};
enum {
    HU_OF_LARGEST = 1, HU_OF_BY_ROW = 2, HU_OF_BY_COLUMN = 4, HU_OF_SQUARE = 8, HU_OF_PRODUCT = 16,
};
enum {
    HU_ADD = 0, HU_SUB = 1, HU_MUL = 2, HU_DIV = 3, HU_NEG = 4, HU_ABS = 5,
    HU_SQRT = 6, HU_SIGN = 7, HU_MAX = 8, HU_MIN = 9, HU_LT = 10, HU_LE = 11,
    HU_EQ = 12, HU_NE = 13, HU_AND = 14, HU_OR = 15, HU_NOT = 16, HU_SELECT = 17,
    HU_ROUNDED = 18, HU_TO_FLOAT = 19, HU_ADD_INT = 20, HU_SUB_INT = 21, HU_SHIFT_LEFT = 22, HU_SHIFT_RIGHT = 23,
    HU_COPY = 24, HU_SAVE = 25, HU_CHECK = 26, HU_SAVE_PARAM = 27, HU_TERM = 28, HU_PRODUCT = 29,
    HU_LARGEST_TERM = 30,
};

#endif
