/* What the stand-ins share. */
#pragma once
#include <stddef.h>

#define EXPORT __attribute__((visibility("default")))

/* Cards there are, and those that CUDA_VISIBLE_DEVICES leaves. */
int pretend_cards(void);
int pretend_visible_cards(void);

/* Whether this fault is asked for: README.md lists them. */
int pretend_fault(const char *name);

/* Count a kernel launch. Returns 0, or the error of a launch that a capture forbids. */
int pretend_launch(const char *what, void *stream);

static const size_t CARD_MEMORY = 150754820096ull; /* of an H200 */
