#define LANES 4
#define TABLE kPortable
#define TABLE_NAME "portable"
#include "microkernels/table-inl.h"
