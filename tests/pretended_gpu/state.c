/* Cards, faults and counts: what every stand-in reads. Environment variables say what is pretended. */
#define _GNU_SOURCE
#include <stdio.h>
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
    int count = 0;
    while (*visible) {  /* as CUDA does: the first entry that names no card ends the list */
        char *end;
        long card = strtol(visible, &end, 10);
        if (end == visible || card < 0 || card >= pretend_cards()) break;
        count++;
        if (*end != ',') break;
        visible = end + 1;
    }
    return count;
}

/* A fault with a file happens to the process that removes the file: three times, as often as torch's allocator asks. */
static int happens_once(const char *file, size_t length) {
    static int left;
    char path[4096];
    if (left) return left--;
    snprintf(path, sizeof path, "%.*s", (int)length, file);
    if (unlink(path)) return 0;
    left = 2;
    return 1;
}

/* PRETEND_FAULT lists faults, such as `capture,more-memory=FILE`. */
int pretend_fault(const char *name) {
    if (!strcmp(pretend_faults, name)) return 1;
    size_t length = strlen(name);
    for (const char *asked = getenv("PRETEND_FAULT"); asked && *asked;) {
        const char *end = strchrnul(asked, ',');
        if (!strncmp(asked, name, length)) {
            if (asked + length == end) return 1;
            if (asked[length] == '=') return happens_once(asked + length + 1, end - asked - length - 1);
        }
        asked = *end ? end + 1 : end;
    }
    return 0;
}
