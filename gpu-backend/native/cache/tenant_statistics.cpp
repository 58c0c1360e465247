#include "cache/tenant_statistics.h"

#include <iterator>

namespace qe {

TenantStatistics::TenantStatistics(std::size_t named) : named_max_(named) { others_.salt = "(others)"; }

Tenant TenantStatistics::arrived(const std::string& salt) {
  if (salt.empty()) return kOperator;
  if (const auto found = by_salt_.find(salt); found != by_salt_.end()) {
    named_.splice(named_.end(), named_, found->second);
    return found->second->number;
  }
  if (named_.size() >= named_max_) {
    const auto& [counters, number] = named_.front();
    others_.queries += counters.queries, others_.hits += counters.hits, others_.evictions += counters.evictions;
    by_salt_.erase(counters.salt);
    by_number_.erase(number);
    named_.pop_front();
  }
  named_.push_back({{{}, salt}, next_++});
  by_salt_.emplace(salt, std::prev(named_.end()));
  by_number_.emplace(named_.back().number, std::prev(named_.end()));
  return named_.back().number;
}

CacheCounters& TenantStatistics::of(Tenant tenant) {
  if (tenant == kOperator) return operator_;
  const auto found = by_number_.find(tenant);
  return found == by_number_.end() ? others_ : found->second->counters;
}

std::vector<TenantCounters> TenantStatistics::all() const {
  std::vector<TenantCounters> all{operator_, others_};
  for (const Named& each : named_) all.push_back(each.counters);
  return all;
}

}  // namespace qe
