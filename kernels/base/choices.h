#pragma once
// Choices that took a measurement, kept in a file for later runs. The file is written beside and
// renamed, so that several processes can share it. One that cannot be read or written costs a new
// measurement and is no error.

#include <map>
#include <string>

namespace weft {

class Choices {
 public:
  // "<name>.txt" in $XDG_CACHE_HOME/weft or ~/.cache/weft. What is no letter, digit or dot becomes
  // '-'.
  explicit Choices(const std::string& name);

  // Empty: not known.
  std::string Find(const std::string& key) const;
  // One line each, without '='.
  void Add(const std::string& key, const std::string& choice);

 private:
  void Read();
  void Write() const;

  std::string path_;  // empty: nowhere to keep it
  std::map<std::string, std::string> choices_;
};

}  // namespace weft
