// Several conversations in one run: their rows stand one behind the other, each reads and writes caches of its own.
//
// seqlens_k is then minus their number, and every cache input holds a table of int64 [conversations, 4] in its first
// bytes instead of a cache (gog_edge/native/contract.py).  Matrices need not know: a row is a row.
#pragma once

#include <cstring>
#include <vector>

#include "check.h"
#include "ort_abi.h"
#include "row_range.h"

namespace gog {

constexpr size_t kMostConversations = 64;

struct Conversation {
    int64_t address;   // of the cache that stands in this input's place
    int64_t capacity;  // rows of it
    int64_t rows;      // of this run that are the conversation's
    int64_t total;     // rows in its cache after this run
};

// How many tables there are, from seqlens_k [1]; 0: the caches are caches.
inline size_t conversation_count(const ort::Tensor& length) {
    require(length.count() == 1, "seqlens_k must be [1]");
    const int64_t last = length.as<int32_t>()[0];
    require(last >= -(int64_t)kMostConversations, "seqlens_k is below minus the most conversations of a run");
    return last < 0 ? (size_t)-last : 0;
}

// The table in a cache input of `bytes`, for a run of `rows`.
inline std::vector<Conversation> conversation_table(const ort::Tensor& cache, size_t bytes, size_t count, size_t rows) {
    require(bytes >= count * sizeof(Conversation), "a cache input is too small for the table of conversations");
    std::vector<Conversation> table(count);
    std::memcpy(table.data(), cache.data, count * sizeof(Conversation));
    size_t seen = 0;
    for (const Conversation& c : table) {
        require(c.address != 0 && c.rows > 0 && c.total >= c.rows, "a conversation's address, rows or total is wrong");
        seen += (size_t)c.rows;
    }
    require(seen == rows, "the conversations' rows do not add up to those of the run");
    return table;
}

// The part of `range` that lies in rows [first, first + count), counted from `first`.
inline RowRange inside(const RowRange& range, size_t first, size_t count) {
    const size_t begin = range.begin > first ? range.begin - first : 0;
    const size_t end = range.end > first ? range.end - first : 0;
    const RowRange part{begin < count ? begin : count, end < count ? end : count};
    return part.begin < part.end ? part : RowRange{};
}

}  // namespace gog
