// Arithmetic of all kinds, printed exactly: tests/userland.rs compiles it in a guest, and runs what the compiler made
// there and on the host. Both must print the same.
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define N 1021

static uint64_t seed = 0x9e3779b97f4a7c15;

static uint64_t next(void) {
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return seed;
}

// FNV-1a.
static uint64_t hash(const void *data, size_t len) {
    const unsigned char *bytes = data;
    uint64_t sum = 0xcbf29ce484222325;
    for (size_t i = 0; i < len; i++) sum = (sum ^ bytes[i]) * 0x100000001b3;
    return sum;
}

static void show(const char *what, const void *data, size_t len) {
    printf("%s %016llx\n", what, (unsigned long long)hash(data, len));
}

static void integers(void) {
    uint64_t sum = 0, bits = 0, quotients = 0;
    int64_t negative = 0;
    for (int i = 0; i < 20000; i++) {
        uint64_t a = next(), b = next() >> (next() % 60) | 1;
        sum += a * b ^ (a >> (b & 63)) ^ (a << (b & 31));
        quotients += a / b + a % b + (uint32_t)a / ((uint32_t)b | 1);
        negative += (int64_t)a / (int64_t)(b | 2) + (int64_t)a % (int64_t)(b | 2) + (int32_t)a / (int32_t)(b | 0x10);
        bits += __builtin_popcountll(a) * 3 + __builtin_clzll(b) * 5 + __builtin_ctzll(b << 3) + __builtin_bswap32(a);
#ifdef __SIZEOF_INT128__
        unsigned __int128 wide = (unsigned __int128)a * b + sum;
        quotients += (uint64_t)(wide / (b | 3)) ^ (uint64_t)(wide >> 64);
#endif
    }
    printf("integers %llx %llx %llx %lld\n", (unsigned long long)sum, (unsigned long long)bits,
           (unsigned long long)quotients, (long long)negative);
}

static double real(void) { return ((int64_t)next() >> 11) * 0x1p-45; }

static void doubles(void) {
    double sum = 0, product = 1;
    float single = 0;
    long long whole = 0;
    for (int i = 1; i < 20000; i++) {
        double a = real(), b = real();
        sum += a * b - a / (fabs(b) + 1) + sqrt(fabs(a));
        product *= 1 + a * 0x1p-30;
        single = single * 0.75f + (float)a / ((float)b + 300.0f);
        whole += (long long)a + (int)b + (a < b) + (unsigned)(long long)(b * 1000);
    }
    printf("doubles %a %.17g %a %lld\n", sum, product, single, whole);
    printf("special %g %g %g %d %d %a %a\n", 1 / (sum - sum), -1 / (sum - sum), sqrt(-fabs(sum)) - 1, NAN == NAN,
           INFINITY > sum, 0x1p-1060 / (3 + sum * 0), nextafter(1.0, 2.0));
}

static void long_doubles(void) {
    long double sum = 0, last = 1;
    for (int i = 1; i < 5000; i++) {
        long double a = (long double)real(), b = (long double)(int64_t)next();
        last = last / 3 + a * a / (1 + fabsl(b)) + sqrtl(fabsl(b));
        sum += fmodl(a, 7) + floorl(a) - truncl(a / 3) + (long double)(int64_t)last;
    }
    printf("long doubles %La %.21Lg %Lg\n", sum, last, scalbnl(last, -16400));
    printf("functions %La %La %La %La %La\n", sinl(sum * 1e-9L), expl(last * 1e-12L), atan2l(sum, last), log2l(last),
           powl(fabsl(last), 0.1L));
}

static double a64[N], b64[N], c64[N];
static float a32[N], b32[N], c32[N];
static int32_t i32[N], j32[N], k32[N];
static int16_t i16[N], j16[N], k16[N];
static uint8_t i8[N], j8[N], k8[N];
static uint64_t u64[N], v64[N], w64[N];

// Loops that the compiler makes vectors of.
static void vectors(void) {
    for (int i = 0; i < N; i++) {
        a64[i] = real(), b64[i] = real(), a32[i] = real(), b32[i] = real();
        i32[i] = next(), j32[i] = next(), i16[i] = next(), j16[i] = next(), i8[i] = next(), j8[i] = next();
        u64[i] = next(), v64[i] = next();
    }
    for (int round = 0; round < 50; round++) {
        for (int i = 0; i < N; i++) c64[i] = c64[i] * 0.5 + a64[i] * b64[i] + sqrt(fabs(a64[i]));
        for (int i = 0; i < N; i++) c32[i] = (a32[i] > b32[i] ? a32[i] : b32[i]) / (fabsf(c32[i]) + 3.0f) + i32[i];
        for (int i = 0; i < N; i++) k32[i] += i32[i] * j32[i] ^ (i32[i] >> (round & 31)) ^ (j32[i] << 3);
        for (int i = 0; i < N; i++) k32[i] = k32[i] > i32[i] ? k32[i] - abs(j32[i]) : i32[i];
        for (int i = 0; i < N; i++) k16[i] = (i16[i] * j16[i] >> 16) + k16[i] + i8[i];
        for (int i = 0; i < N; i++) k8[i] = (i8[i] + j8[i] + 1) / 2 + (k8[i] > j8[i]);
        for (int i = 0; i < N; i++) w64[i] += u64[i] * v64[i] ^ u64[i] >> (v64[i] & 63);
        for (int i = 0; i < N; i++) u64[i] += (uint64_t)i32[i] * (uint32_t)j32[i];
        for (int i = 0; i < N; i++) a64[i] = i32[i] * 0.25 + a32[i];
        for (int i = 0; i < N; i++) j32[i] = (int)(b64[i] * 100) + (int)b32[i];
        for (int i = 0; i + 4 < N; i++) i32[i] = j32[(i32[i + 4] & 1023) % N] + i32[i];
    }
    double sum = 0;
    uint64_t all = 0;
    for (int i = 0; i < N; i++) sum += c64[i], all ^= w64[i] + k32[i];
    printf("vectors %a %llx\n", sum, (unsigned long long)all);
    show("c64", c64, sizeof c64), show("c32", c32, sizeof c32), show("k32", k32, sizeof k32);
    show("k16", k16, sizeof k16), show("k8", k8, sizeof k8), show("u64", u64, sizeof u64), show("j32", j32, sizeof j32);
}

// A matrix product, as in numerical work.
static void matrices(void) {
    enum { M = 48 };
    static double a[M][M], b[M][M], c[M][M];
    for (int i = 0; i < M; i++)
        for (int j = 0; j < M; j++) a[i][j] = real(), b[i][j] = real() / 256;
    for (int i = 0; i < M; i++)
        for (int k = 0; k < M; k++)
            for (int j = 0; j < M; j++) c[i][j] += a[i][k] * b[k][j];
    show("matrix", c, sizeof c);
}

static int ascending(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

// What the C library does with vector instructions, by what the CPU has.
static void library(void) {
    static char text[40000], copy[40000];
    size_t sum = 0;
    for (size_t i = 0; i + 1 < sizeof text; i++) text[i] = 'a' + next() % 26;
    for (int i = 0; i < 300; i++) {
        size_t at = next() % 20000, len = next() % 9000;
        memmove(copy + next() % 20000, text + at, len);
        memset(copy + at, i, len % 300);
        sum = sum * 31 + strlen(text + at) + strcspn(text + at, "xyz") + (size_t)(strchr(text + at, 'q') - text);
        sum += (memcmp(text + at, copy + at, len) > 0) + (size_t)(strstr(text + at, "ab") - text);
    }
    show("copied", copy, sizeof copy);
    qsort(w64, N, sizeof *w64, ascending);
    show("sorted", w64, sizeof w64);
    printf("library %zu %.15e\n", sum, strtod("3.14159265358979323846264338327950288e-101", NULL));
}

int main(void) {
    integers(), doubles(), long_doubles(), vectors(), matrices(), library();
    return 0;
}
