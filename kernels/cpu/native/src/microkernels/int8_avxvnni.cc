#define LANES 8
#define INT8_TABLE kInt8AvxVnni
#define INT8_NAME "avxvnni"
#define INT8_ROWS 6
#define INT8_DOT
#include "microkernels/int8-inl.h"
