/* Cards, faults and counts: what every stand-in reads. Environment variables say what is pretended. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "pretend.h"

EXPORT long pretend_launches = 0, pretend_captured = 0, pretend_graphs = 0, pretend_synchronisations = 0;
EXPORT char pretend_faults[64] = "";  /* a fault that a test switches on in its own process */

int pretend_cards(void) {
    const char *cards = getenv("PRETEND_GPUS");
    return cards ? atoi(cards) : 1;
}

EXPORT int pretend_visible_cards(void) {  /* exported: libcuda.so.1 looks it up */
    const char *visible = getenv("CUDA_VISIBLE_DEVICES");
    if (!visible) return pretend_cards();
    int count = *visible ? 1 : 0;
    for (; *visible; visible++) count += *visible == ',';
    return count;
}

/* PRETEND_FAULT names a fault. With PRETEND_FAULT_ONCE=FILE it happens once, to the process that removes FILE. */
int pretend_fault(const char *name) {
    if (!strcmp(pretend_faults, name)) return 1;
    const char *asked = getenv("PRETEND_FAULT"), *once = getenv("PRETEND_FAULT_ONCE");
    if (!asked || strcmp(asked, name)) return 0;
    return !once || unlink(once) == 0;
}
