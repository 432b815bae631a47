// Command volumes is the volume provisioner of the test cluster, whose nodes all live on one machine.
//
// A claim of one of its classes gets a local volume on the node that the scheduler chose, and the volume goes away after
// the claim when the reclaim policy says Delete. The class's parameter `kind` says what a volume is:
//
//   - directory: a plain folder. Fast, and as large as the machine's disk, whatever was asked for.
//   - filesystem: an XFS of the size asked for, on a loop device. It can be full, and it can be grown while in use, as a
//     cloud's disks can. (Growing an ext4 takes CAP_SYS_RESOURCE, which root in a container often has not.)
//
// A volume belongs to root with mode 0755, as elsewhere: pods that run as somebody else need an fsGroup.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	corelisters "k8s.io/client-go/listers/core/v1"
	storagelisters "k8s.io/client-go/listers/storage/v1"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"
)

const (
	provisionerName = "chronicle.test/local"
	provisionedBy   = "pv.kubernetes.io/provisioned-by"
	selectedNode    = "volume.kubernetes.io/selected-node"
	kindAnnotation  = "chronicle.test/kind"
	kindDirectory   = "directory"
	kindFilesystem  = "filesystem"
)

type provisioner struct {
	root    string
	client  kubernetes.Interface
	claims  corelisters.PersistentVolumeClaimLister
	volumes corelisters.PersistentVolumeLister
	classes storagelisters.StorageClassLister
}

func main() {
	kubeconfig := flag.String("kubeconfig", "", "kubeconfig of the cluster")
	root := flag.String("dir", "", "folder that the volumes are made in")
	klog.InitFlags(nil)
	flag.Parse()
	config, err := clientcmd.BuildConfigFromFlags("", *kubeconfig)
	if err != nil {
		klog.Fatal(err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	client := kubernetes.NewForConfigOrDie(config)
	factory := informers.NewSharedInformerFactory(client, 0)
	p := &provisioner{
		root:    *root,
		client:  client,
		claims:  factory.Core().V1().PersistentVolumeClaims().Lister(),
		volumes: factory.Core().V1().PersistentVolumes().Lister(),
		classes: factory.Storage().V1().StorageClasses().Lister(),
	}
	factory.Start(ctx.Done())
	factory.WaitForCacheSync(ctx.Done())
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			p.round(ctx)
		}
	}
}

// round does what is to be done now. Each step can be repeated; what fails is logged and tried again in the next round.
func (p *provisioner) round(ctx context.Context) {
	claims, _ := p.claims.List(labels.Everything())
	for _, claim := range claims {
		var err error
		switch claim.Status.Phase {
		case v1.ClaimPending:
			err = p.provision(ctx, claim)
		case v1.ClaimBound:
			err = p.expand(ctx, claim)
		}
		if err != nil {
			klog.ErrorS(err, "claim", "claim", klog.KObj(claim))
		}
	}
	volumes, _ := p.volumes.List(labels.Everything())
	for _, volume := range volumes {
		if err := p.reclaim(ctx, volume); err != nil {
			klog.ErrorS(err, "reclaim", "volume", volume.Name)
		}
	}
}

func (p *provisioner) provision(ctx context.Context, claim *v1.PersistentVolumeClaim) error {
	node := claim.Annotations[selectedNode]
	if claim.DeletionTimestamp != nil || claim.Spec.VolumeName != "" || claim.Spec.StorageClassName == nil || node == "" {
		return nil
	}
	class, err := p.classes.Get(*claim.Spec.StorageClassName)
	if err != nil || class.Provisioner != provisionerName {
		return nil
	}
	name := "pvc-" + string(claim.UID)
	if _, err := p.volumes.Get(name); err == nil {
		return nil
	}
	kind := class.Parameters["kind"]
	path := filepath.Join(p.root, node, name)
	size := claim.Spec.Resources.Requests[v1.ResourceStorage]
	if err := os.MkdirAll(path, 0o755); err != nil {
		return err
	}
	switch kind {
	case kindDirectory:
	case kindFilesystem:
		if err := makeFilesystem(path, size.Value()); err != nil {
			return err
		}
	default:
		return fmt.Errorf("storage class %s: parameter kind is %q, must be %s or %s", class.Name, kind, kindDirectory, kindFilesystem)
	}
	policy := v1.PersistentVolumeReclaimDelete
	if class.ReclaimPolicy != nil {
		policy = *class.ReclaimPolicy
	}
	_, err = p.client.CoreV1().PersistentVolumes().Create(ctx, &v1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: map[string]string{provisionedBy: provisionerName, kindAnnotation: kind}},
		Spec: v1.PersistentVolumeSpec{
			StorageClassName:              class.Name,
			PersistentVolumeReclaimPolicy: policy,
			AccessModes:                   claim.Spec.AccessModes,
			Capacity:                      v1.ResourceList{v1.ResourceStorage: size},
			PersistentVolumeSource:        v1.PersistentVolumeSource{Local: &v1.LocalVolumeSource{Path: path}},
			ClaimRef: &v1.ObjectReference{Kind: "PersistentVolumeClaim", APIVersion: "v1", Namespace: claim.Namespace,
				Name: claim.Name, UID: claim.UID, ResourceVersion: claim.ResourceVersion},
			NodeAffinity: &v1.VolumeNodeAffinity{Required: &v1.NodeSelector{NodeSelectorTerms: []v1.NodeSelectorTerm{{
				MatchExpressions: []v1.NodeSelectorRequirement{{Key: v1.LabelHostname, Operator: v1.NodeSelectorOpIn, Values: []string{node}}},
			}}}},
		},
	}, metav1.CreateOptions{})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return err
	}
	klog.InfoS("provisioned", "claim", klog.KObj(claim), "kind", kind, "path", path)
	return nil
}

// expand grows the file system first, then says so on the volume, then on the claim.
func (p *provisioner) expand(ctx context.Context, claim *v1.PersistentVolumeClaim) error {
	want := claim.Spec.Resources.Requests[v1.ResourceStorage]
	if have := claim.Status.Capacity[v1.ResourceStorage]; claim.DeletionTimestamp != nil || want.Cmp(have) <= 0 {
		return nil
	}
	volume, err := p.volumes.Get(claim.Spec.VolumeName)
	if err != nil || volume.Annotations[kindAnnotation] != kindFilesystem {
		return nil
	}
	if err := growFilesystem(volume.Spec.Local.Path, want.Value()); err != nil {
		return err
	}
	if have := volume.Spec.Capacity[v1.ResourceStorage]; have.Cmp(want) < 0 {
		volume = volume.DeepCopy()
		volume.Spec.Capacity[v1.ResourceStorage] = want
		if _, err := p.client.CoreV1().PersistentVolumes().Update(ctx, volume, metav1.UpdateOptions{}); err != nil {
			return err
		}
	}
	claim = claim.DeepCopy()
	claim.Status.Capacity[v1.ResourceStorage] = want
	claim.Status.Conditions = nil
	if _, err := p.client.CoreV1().PersistentVolumeClaims(claim.Namespace).UpdateStatus(ctx, claim, metav1.UpdateOptions{}); err != nil {
		if apierrors.IsConflict(err) {
			return nil // somebody wrote the claim meanwhile; the next round sees it
		}
		return err
	}
	klog.InfoS("expanded", "claim", klog.KObj(claim), "to", want.String())
	return nil
}

func (p *provisioner) reclaim(ctx context.Context, volume *v1.PersistentVolume) error {
	if volume.Annotations[provisionedBy] != provisionerName || volume.Status.Phase != v1.VolumeReleased || volume.DeletionTimestamp != nil ||
		volume.Spec.PersistentVolumeReclaimPolicy != v1.PersistentVolumeReclaimDelete {
		return nil
	}
	path := volume.Spec.Local.Path
	if volume.Annotations[kindAnnotation] == kindFilesystem && mounted(path) {
		if err := run("umount", path); err != nil {
			return err
		}
	}
	if err := errors.Join(os.RemoveAll(path), os.RemoveAll(backing(path))); err != nil {
		return err
	}
	if err := p.client.CoreV1().PersistentVolumes().Delete(ctx, volume.Name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
		return err
	}
	klog.InfoS("removed", "volume", volume.Name)
	return nil
}

func backing(path string) string { return path + ".xfs" }

func mounted(path string) bool { return exec.Command("mountpoint", "--quiet", path).Run() == nil }

// Below this size mkfs.xfs wants to hear that one knows what one does.
const smallXFS = 300 << 20

// makeFilesystem makes a sparse file of so many bytes, an XFS in it, and mounts it on path. The loop device goes away with
// the mount.
func makeFilesystem(path string, bytes int64) error {
	if mounted(path) {
		return nil
	}
	file := backing(path)
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		return err
	}
	if err := os.Truncate(file, bytes); err != nil {
		return err
	}
	options := []string{"-q", "-f"}
	if bytes < smallXFS {
		options = append(options, "--unsupported")
	}
	if err := run("mkfs.xfs", append(options, file)...); err != nil {
		return err
	}
	return run("mount", "-o", "loop", file, path)
}

func growFilesystem(path string, bytes int64) error {
	file := backing(path)
	if info, err := os.Stat(file); err != nil {
		return err
	} else if info.Size() < bytes {
		if err := os.Truncate(file, bytes); err != nil {
			return err
		}
	}
	device, err := exec.Command("losetup", "--noheadings", "--output", "NAME", "--associated", file).Output()
	if err != nil {
		return fmt.Errorf("losetup --associated %s: %w", file, err)
	}
	name := strings.TrimSpace(string(device))
	if name == "" {
		return fmt.Errorf("%s: no loop device holds it, wanted to grow it to %s bytes", file, strconv.FormatInt(bytes, 10))
	}
	if err := run("losetup", "--set-capacity", name); err != nil {
		return err
	}
	return run("xfs_growfs", "-d", path)
}

func run(name string, args ...string) error {
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}
