#pragma once

#define LLMOS_EXPORT extern "C" __attribute__((visibility("default")))
