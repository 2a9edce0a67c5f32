//! The managed `/etc/hosts`.

/// The file of a pod with its own network. Software looks for the first line to tell that the
/// file is managed.
pub(crate) fn for_pod(
    ips: &[String],
    hostname: &str,
    fqdn: &str,
    aliases: &[(String, Vec<String>)],
) -> String {
    let mut text = String::from("# Kubernetes-managed hosts file.\n");
    text.push_str("127.0.0.1\tlocalhost\n");
    text.push_str("::1\tlocalhost ip6-localhost ip6-loopback\n");
    text.push_str("fe00::0\tip6-localnet\n");
    text.push_str("fe00::0\tip6-mcastprefix\n");
    text.push_str("fe00::1\tip6-allnodes\n");
    text.push_str("fe00::2\tip6-allrouters\n");
    for ip in ips {
        if fqdn.is_empty() {
            text.push_str(&format!("{ip}\t{hostname}\n"));
        } else {
            text.push_str(&format!("{ip}\t{fqdn}\t{hostname}\n"));
        }
    }
    push_aliases(&mut text, aliases);
    text
}

/// The file of a pod on the host's network: the host's own, with the aliases.
pub(crate) fn for_host_network(host_file: &str, aliases: &[(String, Vec<String>)]) -> String {
    let mut text = String::from("# Kubernetes-managed hosts file (host network).\n");
    text.push_str(host_file);
    push_aliases(&mut text, aliases);
    text
}

fn push_aliases(text: &mut String, aliases: &[(String, Vec<String>)]) {
    if aliases.is_empty() {
        return;
    }
    text.push_str("\n# Entries added by HostAliases.\n");
    for (ip, names) in aliases {
        text.push_str(&format!("{ip}\t{}\n", names.join("\t")));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aliases_follow_the_pods_own_lines() {
        let text = for_pod(
            &["10.1.1.1".into()],
            "web",
            "web.sub.ns.svc.cluster.local",
            &[("1.2.3.4".into(), vec!["foo".into(), "bar".into()])],
        );
        assert!(text.starts_with("# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n"));
        assert!(text.contains("10.1.1.1\tweb.sub.ns.svc.cluster.local\tweb\n"));
        assert!(text.ends_with("\n# Entries added by HostAliases.\n1.2.3.4\tfoo\tbar\n"));
    }

    #[test]
    fn host_network_keeps_the_hosts_lines() {
        let text = for_host_network("127.0.0.1 x\n", &[]);
        assert_eq!(
            text,
            "# Kubernetes-managed hosts file (host network).\n127.0.0.1 x\n"
        );
    }
}
