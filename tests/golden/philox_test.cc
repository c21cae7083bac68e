// links: weft_flags
// Known answers of philox4x32-10 from the Random123 distribution, tests/kat_vectors.

#include <gtest/gtest.h>

#include "kernels/base/rng.h"

namespace weft {
namespace {

TEST(Philox, GivesTheKnownAnswers) {
  EXPECT_EQ(Philox({0, 0, 0, 0}, 0), (PhiloxWords{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(Philox({~0u, ~0u, ~0u, ~0u}, ~uint64_t{0}),
            (PhiloxWords{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(Philox({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, 0x299f31d0a4093822),
            (PhiloxWords{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(Philox, StreamsAreItsBlocksInOrder) {
  const uint64_t seed = 0x0123456789abcdef, index = 0xfedcba9876543210;
  Rng rng(seed, Purpose::kTest, index);
  for (uint32_t block = 0; block < 3; ++block) {
    const PhiloxWords words =
        Philox({block, static_cast<uint32_t>(Purpose::kTest), 0x76543210, 0xfedcba98}, seed);
    for (const uint32_t word : words.at) EXPECT_EQ(rng.Next(), word);
  }
}

}  // namespace
}  // namespace weft
