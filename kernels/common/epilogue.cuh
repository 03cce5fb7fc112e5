// What happens to the elements of a matrix product between their f32 sums and their one rounding. Each epilogue is a
// type that a GEMM or GEMV takes as a parameter; it works on pairs of columns 2c and 2c + 1, which one thread holds:
//
//   Output<T>                           where the product goes and what is added to it
//   Stored<T>                           the type of an element of the output
//   column_terms(output, column)        what belongs to a pair of columns. No kernel writes it: it may be read before
//                                       grid_dependency_wait()
//   row_terms(output, row)              what belongs to a row, after the wait
//   pair_terms(output, row's, column)   what belongs to a pair; behind loads of row_terms
//   apply<T>(sum, column's, pair's)     sum[0] and sum[1] become the values to round and store
//   place(output, row's, column)        where element (row, column) goes, and those behind it up to the next multiple
//                                       of 8; null where it is not stored
//   kAddsToOutput                       whether it adds what the output held: pair_terms is then an uint32_t of two T,
//                                       which may also be read otherwise, such as 16 bytes at a time
//
// `column` is even everywhere; columns are multiples of 8, and so are the starts of rows in elements.
#pragma once
#include "common/dtypes.cuh"

// Nothing to read.
struct NoTerms {};

// Where a product usually goes: `data` is [m, n]; `bias` has one element a column, null for none.
template <class T>
struct Matrix {
    const T* bias;
    T* data;
    uint32_t n;
};

// The bias of two columns, packed; zeros without one.
template <class T>
DEVICE uint32_t bias_pair(const T* bias, uint32_t column) {
    return bias == nullptr ? 0u : load_readonly_4(bias + column);
}
template <class T>
DEVICE void add_pair(float (&sum)[2], uint32_t pair) {
    sum[0] += low_f32<T>(pair);
    sum[1] += high_f32<T>(pair);
}

// sum + bias
struct Bias {
    template <class T>
    using Output = Matrix<T>;
    template <class T>
    using Stored = T;
    static constexpr bool kAddsToOutput = false;

    template <class T>
    DEVICE uint32_t column_terms(const Matrix<T>& output, uint32_t column) {
        return bias_pair(output.bias, column);
    }
    // The start of the row.
    template <class T>
    DEVICE T* row_terms(const Matrix<T>& output, uint32_t row) {
        return output.data + static_cast<size_t>(row) * output.n;
    }
    template <class T>
    DEVICE NoTerms pair_terms(const Matrix<T>&, const T*, uint32_t) {
        return {};
    }
    template <class T>
    DEVICE void apply(float (&sum)[2], uint32_t bias, NoTerms) {
        add_pair<T>(sum, bias);
    }
    template <class T>
    DEVICE T* place(const Matrix<T>&, T* row, uint32_t column) {
        return row + column;
    }
};

// gelu(sum + bias), the tanh form: gelu(x) = x / 2 (1 + tanh u) with u = sqrt(2 / pi) (x + 0.044715 x^3), which is
// x / (1 + exp(-2 u)).
struct BiasGelu : Bias {
    template <class T>
    DEVICE void apply(float (&sum)[2], uint32_t bias, NoTerms) {
        constexpr float kFactor = -2.302208198f;  // -2 sqrt(2 / pi) / ln(2)
        add_pair<T>(sum, bias);
#pragma unroll
        for (uint32_t i = 0; i < 2; i++) {
            const float x = sum[i];
            sum[i] = x * reciprocal_approx(1.0f + exp2_approx(kFactor * (x + 0.044715f * x * x * x)));
        }
    }
};

// sum + bias + what the output held: the residual stream, updated in place. Each element is read and written by one
// thread, or by lanes of one warp that meet in between.
struct BiasResidual : Bias {
    static constexpr bool kAddsToOutput = true;

    template <class T>
    DEVICE uint32_t pair_terms(const Matrix<T>&, const T* row, uint32_t column) {
        return load_global_4(row + column);
    }
    template <class T>
    DEVICE void apply(float (&sum)[2], uint32_t bias, uint32_t residual) {
        add_pair<T>(sum, bias);
        add_pair<T>(sum, residual);
    }
};

// f32 [m, n].
struct LogitsMatrix {
    float* data;
    uint32_t n;
};

// The sums as they are.
struct Logits {
    template <class T>
    using Output = LogitsMatrix;
    template <class T>
    using Stored = float;
    static constexpr bool kAddsToOutput = false;

    DEVICE NoTerms column_terms(const LogitsMatrix&, uint32_t) { return {}; }
    // The start of the row.
    DEVICE float* row_terms(const LogitsMatrix& output, uint32_t row) {
        return output.data + static_cast<size_t>(row) * output.n;
    }
    DEVICE NoTerms pair_terms(const LogitsMatrix&, const float*, uint32_t) { return {}; }
    template <class T>
    DEVICE void apply(float (&)[2], NoTerms, NoTerms) {}
    DEVICE float* place(const LogitsMatrix&, float* row, uint32_t column) { return row + column; }
};

// Where the product with the fused query, key and value weights goes. Its columns are heads of 2^head_bits: first
// `heads` query heads, then `kv_heads` key heads, then as many value heads.
//
//   bias          T [(heads + 2 kv_heads) head_dim], null for none
//   queries       T [rows, heads, head_dim]
//   keys, values  T [pages, kv_heads, page_size, head_dim]
//   positions     u32 [rows]   those past `table_rows` rotate as its last
//   row_pages     u32 [rows]   the page of the row's key and value, at slot position % page_size; where it is not below
//                              `pages` (padding: 0xffffffff) they are not written
//   rotations     f32 [table_rows, head_dim / 2, 2], cosine and sine of the angle of each position and pair
template <class T>
struct QueryKeyValue {
    const T* bias;
    T *queries, *keys, *values;
    const uint32_t *positions, *row_pages;
    const float* rotations;
    uint32_t table_rows, pages, heads, kv_heads, head_bits, page_bits;
};

// sum + bias; pairs of query and key columns are then turned by the angle of the row's position and the pair:
// (x, y) becomes (x cos - y sin, y cos + x sin).
struct BiasRopeKv {
    template <class T>
    using Output = QueryKeyValue<T>;
    template <class T>
    using Stored = T;
    static constexpr bool kAddsToOutput = false;

    struct Column {
        uint32_t bias;
        bool turned;  // a query's or key's
    };
    struct Row {
        uint32_t row, position, page;
    };

    template <class T>
    DEVICE Column column_terms(const QueryKeyValue<T>& output, uint32_t column) {
        const bool turned = column < (output.heads + output.kv_heads) << output.head_bits;
        return Column{bias_pair(output.bias, column), turned};
    }
    template <class T>
    DEVICE Row row_terms(const QueryKeyValue<T>& output, uint32_t row) {
        return Row{row, load_global_4(output.positions + row), load_global_4(output.row_pages + row)};
    }
    // Cosine and sine. Of values too, which are not turned: a load without a branch can be issued ahead.
    template <class T>
    DEVICE float2 pair_terms(const QueryKeyValue<T>& output, const Row& row, uint32_t column) {
        const uint32_t head_dim = 1u << output.head_bits;
        const size_t table_row = min(row.position, output.table_rows - 1);
        const uint2 bits = load_readonly_8(output.rotations + table_row * head_dim + (column & (head_dim - 1)));
        return float2{__uint_as_float(bits.x), __uint_as_float(bits.y)};
    }
    template <class T>
    DEVICE void apply(float (&sum)[2], const Column& column, float2 rotation) {
        add_pair<T>(sum, column.bias);
        const float x = sum[0], y = sum[1];
        if (column.turned) {
            sum[0] = x * rotation.x - y * rotation.y;
            sum[1] = y * rotation.x + x * rotation.y;
        }
    }
    template <class T>
    DEVICE T* place(const QueryKeyValue<T>& output, const Row& row, uint32_t column) {
        const uint32_t query_columns = output.heads << output.head_bits;
        if (column < query_columns) return output.queries + static_cast<size_t>(row.row) * query_columns + column;
        if (row.page >= output.pages) return nullptr;
        const uint32_t head = (column >> output.head_bits) - output.heads;
        const bool is_key = head < output.kv_heads;
        const size_t block = static_cast<size_t>(row.page) * output.kv_heads + (is_key ? head : head - output.kv_heads);
        const uint32_t slot = row.position & ((1u << output.page_bits) - 1);
        const uint32_t in_head = column & ((1u << output.head_bits) - 1);
        const size_t element = (((block << output.page_bits) + slot) << output.head_bits) + in_head;
        return (is_key ? output.keys : output.values) + element;
    }
};

// Rounds a pair and stores it where it goes, if it goes anywhere.
template <class T>
DEVICE void store_pair(T* place, const float (&pair)[2]) {
    if (place != nullptr) store_global_4(place, pack<T>(pair[0], pair[1]));
}
template <class T>
DEVICE void store_pair(float* place, const float (&pair)[2]) {
    store_global_8(place, uint2{__float_as_uint(pair[0]), __float_as_uint(pair[1])});
}

// The parameters of a kernel for each form of output, behind `x` and `weights`, and the output made of them.
#define MATRIX_PARAMETERS(T) const T *bias, T *out, uint32_t m, uint32_t n, uint32_t k
#define MATRIX_OUTPUT(T) \
    Matrix<T> { bias, out, n }
#define LOGITS_PARAMETERS(T) float *out, uint32_t m, uint32_t n, uint32_t k
#define LOGITS_OUTPUT(T) \
    LogitsMatrix { out, n }
#define QUERY_KEY_VALUE_PARAMETERS(T)                                                                    \
    const T *bias, T *queries, T *keys, T *values, const uint32_t *positions, const uint32_t *row_pages, \
        const float *rotations, uint32_t table_rows, uint32_t pages, uint32_t heads, uint32_t kv_heads,  \
        uint32_t head_bits, uint32_t page_bits, uint32_t m, uint32_t n, uint32_t k
#define QUERY_KEY_VALUE_OUTPUT(T)                                                                                    \
    QueryKeyValue<T> {                                                                                               \
        bias, queries, keys, values, positions, row_pages, rotations, table_rows, pages, heads, kv_heads, head_bits, \
            page_bits                                                                                                \
    }
