#pragma once

#include <cstdint>
#include <list>
#include <string>
#include <unordered_map>
#include <vector>

namespace qe {

/** A tenant's number, for statistics; each is given once. */
using Tenant = std::uint64_t;

struct CacheCounters {
  std::uint64_t queries = 0;    // tokens looked up
  std::uint64_t hits = 0;       // tokens found
  std::uint64_t evictions = 0;  // blocks
};

struct TenantCounters : CacheCounters {
  std::string salt;
};

/**
 * The prefix cache's counters by tenant: by name for the tenants that came last, in one sum for all others. Who has not
 * asked for longest goes into the sum, and so do evictions of blocks that such a tenant left.
 */
class TenantStatistics {
 public:
  static constexpr Tenant kOperator = 0;  // whose text everybody shares; always named, with the empty salt

  explicit TenantStatistics(std::size_t named = 1000);

  /** The number of whoever uses the salt now. */
  Tenant arrived(const std::string& salt);
  /** The tenant's counters, or the sum's when it has no name any more. */
  CacheCounters& of(Tenant tenant);
  /** The operator, the sum as "(others)", then the named, longest unheard of first. */
  [[nodiscard]] std::vector<TenantCounters> all() const;

 private:
  struct Named {
    TenantCounters counters;
    Tenant number;
  };

  std::size_t named_max_;
  Tenant next_ = kOperator + 1;
  TenantCounters operator_, others_;
  std::list<Named> named_;  // longest unheard of first
  std::unordered_map<std::string, std::list<Named>::iterator> by_salt_;
  std::unordered_map<Tenant, std::list<Named>::iterator> by_number_;
};

}  // namespace qe
