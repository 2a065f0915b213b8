/* Generated code for one instruction set (HU_ISA), one part of it (HU_PART). */
#include "loop.h"

#define CONCAT_(a, b, c, d) a##b##c##d
#define CONCAT(a, b, c, d) CONCAT_(a, b, c, d)

#include "generated.h"

const hu_part CONCAT(hu_part_, HU_ISA, _, HU_PART) = {table, sizeof table / sizeof *table};
