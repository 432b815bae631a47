// Command policy enforces NetworkPolicies in the test cluster: it turns them into nftables rules in the network namespace of
// each node.
//
// Pods are routed, so that what goes to or comes from one passes the forward hook of its node: after kube-proxy has put a pod's
// address in place of a service's, and not when the node itself asks, as kubelet's probes do. For every pod that a policy isolates
// there is a chain of what is allowed, with a drop at its end. Connections that exist are not cut by a new policy.
//
// Everything is looked at five times a second, and a node gets new rules when the text of its rules has changed. After ten
// seconds it gets them anyway: a node that was killed came back without.
package main

import (
	"context"
	"flag"
	"fmt"
	"os/exec"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	v1 "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"
)

// world is what the rules are made of, at one moment.
type world struct {
	pods       []*v1.Pod // with an address, not on the node's own network, not at their end
	namespaces map[string]labels.Set
	policies   []*networking.NetworkPolicy
}

func main() {
	kubeconfig := flag.String("kubeconfig", "", "kubeconfig of the cluster")
	prefix := flag.String("namespace-prefix", "", "network namespace of node n1 is PREFIX-n1")
	klog.InitFlags(nil)
	flag.Parse()
	config, err := clientcmd.BuildConfigFromFlags("", *kubeconfig)
	if err != nil {
		klog.Fatal(err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	factory := informers.NewSharedInformerFactory(kubernetes.NewForConfigOrDie(config), 0)
	pods := factory.Core().V1().Pods().Lister()
	nodes := factory.Core().V1().Nodes().Lister()
	namespaces := factory.Core().V1().Namespaces().Lister()
	policies := factory.Networking().V1().NetworkPolicies().Lister()
	factory.Start(ctx.Done())
	factory.WaitForCacheSync(ctx.Done())

	type applied struct {
		rules string
		at    time.Time
	}
	last := map[string]applied{}
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		all, _ := pods.List(labels.Everything())
		spaces, _ := namespaces.List(labels.Everything())
		rules, _ := policies.List(labels.Everything())
		w := world{policies: rules, namespaces: map[string]labels.Set{}}
		for _, pod := range all {
			ended := pod.Status.Phase == v1.PodSucceeded || pod.Status.Phase == v1.PodFailed
			if pod.Status.PodIP != "" && !pod.Spec.HostNetwork && !ended {
				w.pods = append(w.pods, pod)
			}
		}
		slices.SortFunc(w.pods, func(a, b *v1.Pod) int { return strings.Compare(string(a.UID), string(b.UID)) })
		slices.SortFunc(w.policies, func(a, b *networking.NetworkPolicy) int { return strings.Compare(string(a.UID), string(b.UID)) })
		for _, space := range spaces {
			w.namespaces[space.Name] = space.Labels
		}
		list, _ := nodes.List(labels.Everything())
		for _, node := range list {
			text := w.rules(node.Name)
			if before := last[node.Name]; before.rules == text && time.Since(before.at) < 10*time.Second {
				continue
			}
			nft := exec.CommandContext(ctx, "nsenter", "--net=/run/netns/"+*prefix+"-"+node.Name, "nft", "-f", "-")
			nft.Stdin = strings.NewReader(text)
			if out, err := nft.CombinedOutput(); err != nil {
				klog.ErrorS(err, "nft", "node", node.Name, "output", string(out), "rules", text)
				continue
			}
			last[node.Name] = applied{text, time.Now()}
		}
	}
}

// rules is the whole ruleset of a node. nft takes it as one transaction: there is no moment without.
func (w world) rules(node string) string {
	var chains, jumps strings.Builder
	for _, direction := range []networking.PolicyType{networking.PolicyTypeEgress, networking.PolicyTypeIngress} {
		for _, pod := range w.pods {
			if pod.Spec.NodeName != node {
				continue
			}
			body, isolated := w.chain(pod, direction)
			if !isolated {
				continue
			}
			side := "saddr"
			if direction == networking.PolicyTypeIngress {
				side = "daddr"
			}
			name := strings.ToLower(string(direction)) + "-" + string(pod.UID)
			fmt.Fprintf(&chains, "  chain %s {\n    comment %q\n%s    counter drop\n  }\n", name, pod.Namespace+"/"+pod.Name, body)
			fmt.Fprintf(&jumps, "    ip %s %s jump %s\n", side, pod.Status.PodIP, name)
		}
	}
	// Deleting needs something to delete.
	return "table inet chronicle-policy\ndelete table inet chronicle-policy\ntable inet chronicle-policy {\n" + chains.String() +
		"  chain forward {\n    type filter hook forward priority 10; policy accept;\n    ct state established,related accept\n" +
		jumps.String() + "  }\n}\n"
}

// chain is what a pod is allowed in one direction, and whether any policy isolates it there at all. What is allowed returns
// to the caller: the other end may have a say too.
func (w world) chain(pod *v1.Pod, direction networking.PolicyType) (string, bool) {
	var body strings.Builder
	isolated := false
	for _, policy := range w.policies {
		if policy.Namespace != pod.Namespace || !slices.Contains(policy.Spec.PolicyTypes, direction) || !matches(&policy.Spec.PodSelector, pod.Labels) {
			continue
		}
		isolated = true
		if direction == networking.PolicyTypeIngress {
			for _, rule := range policy.Spec.Ingress {
				for _, peer := range w.peers(policy.Namespace, rule.From, "saddr") {
					for _, port := range ports(rule.Ports, []*v1.Pod{pod}) {
						fmt.Fprintf(&body, "    %s\n", join(peer, port, "return"))
					}
				}
			}
		} else {
			for _, rule := range policy.Spec.Egress {
				for _, peer := range w.peers(policy.Namespace, rule.To, "daddr") {
					for _, port := range ports(rule.Ports, w.pods) {
						fmt.Fprintf(&body, "    %s\n", join(peer, port, "return"))
					}
				}
			}
		}
	}
	return body.String(), isolated
}

// peers is a list of matches of which any may hold. No peers at all means everybody.
func (w world) peers(namespace string, peers []networking.NetworkPolicyPeer, side string) []string {
	if len(peers) == 0 {
		return []string{""}
	}
	var found []string
	for _, peer := range peers {
		if peer.IPBlock != nil {
			match := "ip " + side + " " + peer.IPBlock.CIDR
			for _, except := range peer.IPBlock.Except {
				match += " ip " + side + " != " + except
			}
			found = append(found, match)
			continue
		}
		var addresses []string
		for _, pod := range w.pods {
			inside := pod.Namespace == namespace
			if peer.NamespaceSelector != nil {
				inside = matches(peer.NamespaceSelector, w.namespaces[pod.Namespace])
			}
			if inside && (peer.PodSelector == nil || matches(peer.PodSelector, pod.Labels)) {
				addresses = append(addresses, pod.Status.PodIP)
			}
		}
		if len(addresses) > 0 {
			found = append(found, "ip "+side+" { "+strings.Join(addresses, ", ")+" }")
		}
	}
	return found
}

// ports is a list of matches of which any may hold. A name is looked up at the pods that traffic goes to.
func ports(list []networking.NetworkPolicyPort, targets []*v1.Pod) []string {
	if len(list) == 0 {
		return []string{""}
	}
	var found []string
	for _, port := range list {
		protocol := "tcp"
		if port.Protocol != nil {
			protocol = strings.ToLower(string(*port.Protocol))
		}
		switch {
		case port.Port == nil:
			found = append(found, "meta l4proto "+protocol)
		case port.Port.Type == intstr.Int && port.EndPort != nil:
			found = append(found, fmt.Sprintf("%s dport %d-%d", protocol, port.Port.IntVal, *port.EndPort))
		case port.Port.Type == intstr.Int:
			found = append(found, fmt.Sprintf("%s dport %d", protocol, port.Port.IntVal))
		default:
			for _, target := range targets {
				for _, container := range target.Spec.Containers {
					for _, named := range container.Ports {
						if named.Name == port.Port.StrVal && strings.EqualFold(string(named.Protocol), protocol) {
							found = append(found, fmt.Sprintf("ip daddr %s %s dport %d", target.Status.PodIP, protocol, named.ContainerPort))
						}
					}
				}
			}
		}
	}
	return found
}

func matches(selector *metav1.LabelSelector, set map[string]string) bool {
	parsed, err := metav1.LabelSelectorAsSelector(selector)
	return err == nil && parsed.Matches(labels.Set(set))
}

func join(parts ...string) string {
	return strings.Join(slices.DeleteFunc(parts, func(part string) bool { return part == "" }), " ")
}
