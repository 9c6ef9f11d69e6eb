//! Plans as the texts that netfilter's tools read: pure, golden-tested.

pub mod iptables;
pub mod nft;

#[cfg(test)]
mod tests;

use super::{
    Tool,
    listing::Listing,
    plan::{Family, Plan},
};

/// The rules of `plans` for a namespace that has none, as the tool's input. For iptables each family is a text of its own.
pub fn text(tool: Tool, plans: &[Plan]) -> Result<String, nft::NftTextError> {
    if tool == Tool::Nftables {
        return nft::apply(plans);
    }
    let each = plans.iter().map(|plan| {
        let program = match plan.family {
            Family::Ipv4 => "iptables-restore",
            Family::Ipv6 => "ip6tables-restore",
        };
        let rules = iptables::apply(plan, &Listing::default());
        format!("# {program} --noflush\n{rules}")
    });
    Ok(each.collect::<Vec<_>>().join("\n"))
}
