// Command certmanager runs one cert-manager component (controller, webhook or
// cainjector) with the flags that cert-manager's own chart passes; flags that
// the test cluster does not need are accepted and ignored.
package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/pflag"
	admissionreg "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apiext "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"
	apireg "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"github.com/cert-manager/cert-manager/internal/apis/config/shared"
	config "github.com/cert-manager/cert-manager/internal/apis/config/webhook"
	"github.com/cert-manager/cert-manager/internal/webhook"
	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	"github.com/cert-manager/cert-manager/pkg/controller"
	"github.com/cert-manager/cert-manager/pkg/controller/cainjector"
	_ "github.com/cert-manager/cert-manager/pkg/controller/certificaterequests/approver"
	_ "github.com/cert-manager/cert-manager/pkg/controller/certificaterequests/ca"
	_ "github.com/cert-manager/cert-manager/pkg/controller/certificaterequests/selfsigned"
	_ "github.com/cert-manager/cert-manager/pkg/controller/certificates/issuing"
	_ "github.com/cert-manager/cert-manager/pkg/controller/certificates/keymanager"
	_ "github.com/cert-manager/cert-manager/pkg/controller/certificates/metrics"
	_ "github.com/cert-manager/cert-manager/pkg/controller/certificates/readiness"
	_ "github.com/cert-manager/cert-manager/pkg/controller/certificates/requestmanager"
	_ "github.com/cert-manager/cert-manager/pkg/controller/certificates/revisionmanager"
	_ "github.com/cert-manager/cert-manager/pkg/controller/certificates/trigger"
	_ "github.com/cert-manager/cert-manager/pkg/controller/clusterissuers"
	_ "github.com/cert-manager/cert-manager/pkg/controller/issuers"
	"github.com/cert-manager/cert-manager/pkg/healthz"
	_ "github.com/cert-manager/cert-manager/pkg/issuer/ca"
	_ "github.com/cert-manager/cert-manager/pkg/issuer/selfsigned"
	"github.com/cert-manager/cert-manager/pkg/util"
)

func must(err error) {
	if err != nil {
		klog.ErrorS(err, "fatal")
		os.Exit(1)
	}
}

func main() {
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, "usage: certmanager {controller|webhook|cainjector} [flags]")
		os.Exit(2)
	}
	fs := pflag.NewFlagSet(os.Args[1], pflag.ExitOnError)
	fs.ParseErrorsAllowlist.UnknownFlags = true
	kubeconfig := fs.String("kubeconfig", "", "")
	ns := fs.String("cluster-resource-namespace", "cert-manager", "")
	securePort := fs.Int32("secure-port", 10250, "")
	healthzPort := fs.Int32("healthz-port", 6080, "")
	dynNS := fs.String("dynamic-serving-ca-secret-namespace", "", "")
	dynName := fs.String("dynamic-serving-ca-secret-name", "", "")
	dynDNS := fs.StringSlice("dynamic-serving-dns-names", nil, "")
	must(fs.Parse(os.Args[2:]))
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	ctrl.SetLogger(klog.Background())
	switch os.Args[1] {
	case "controller":
		runController(ctx, *kubeconfig, *ns)
	case "webhook":
		s, err := webhook.NewCertManagerWebhookServer(klog.Background(), config.WebhookConfiguration{
			SecurePort: *securePort, HealthzPort: *healthzPort, KubeConfig: *kubeconfig, MetricsListenAddress: "0",
			TLSConfig: shared.TLSConfig{Dynamic: shared.DynamicServingConfig{
				SecretNamespace: *dynNS, SecretName: *dynName, DNSNames: *dynDNS, LeafDuration: 7 * 24 * time.Hour}},
		})
		must(err)
		must(s.Run(ctx))
	case "cainjector":
		runInjector(ctx, *kubeconfig, *dynNS)
	default:
		klog.Fatalf("unknown component %s", os.Args[1])
	}
}

func runController(ctx context.Context, kubeconfig, ns string) {
	f, err := controller.NewContextFactory(ctx, controller.ContextOptions{
		Kubeconfig: kubeconfig, KubernetesAPIQPS: 20, KubernetesAPIBurst: 50,
		IssuerOptions: controller.IssuerOptions{ClusterResourceNamespace: ns},
		CertificateOptions: controller.CertificateOptions{CopiedAnnotationPrefixes: []string{"*"},
			CertificateRequestMinimumBackoffDuration: time.Hour, CertificateRequestMaximumBackoffDuration: 32 * time.Hour},
	})
	must(err)
	c, err := f.Build()
	must(err)
	var wg sync.WaitGroup
	for name, mk := range controller.Known() {
		i, err := mk(f)
		must(err)
		wg.Go(func() {
			klog.InfoS("starting", "controller", name)
			must(i.Run(5, ctx))
		})
	}
	c.SharedInformerFactory.Start(ctx.Done())
	c.KubeSharedInformerFactory.Start(ctx.Done())
	c.HTTP01ResourceMetadataInformersFactory.Start(ctx.Done())
	l, err := net.Listen("tcp", ":9403")
	must(err)
	wg.Go(func() { must(healthz.NewServer(20*time.Second).Start(ctx, l)) })
	wg.Wait()
}

func runInjector(ctx context.Context, kubeconfig, _ string) {
	cfg, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	must(err)
	cfg = util.RestConfigWithUserAgent(cfg, "cainjector") // it becomes the field manager of server-side apply
	s := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{scheme.AddToScheme, corev1.AddToScheme, admissionreg.AddToScheme, apiext.AddToScheme, apireg.AddToScheme, cmapi.AddToScheme} {
		must(add(s))
	}
	m, err := ctrl.NewManager(cfg, ctrl.Options{Scheme: s, Metrics: metricsserver.Options{BindAddress: "0"},
		Client: client.Options{Cache: &client.CacheOptions{DisableFor: []client.Object{&corev1.Secret{}}}}})
	must(err)
	must(cainjector.RegisterAllInjectors(ctx, m, cainjector.SetupOptions{EnableCertificatesDataSource: true,
		EnabledReconcilersFor: map[string]bool{cainjector.MutatingWebhookConfigurationName: true,
			cainjector.ValidatingWebhookConfigurationName: true, cainjector.APIServiceName: true, cainjector.CustomResourceDefinitionName: true}}))
	must(m.Start(ctx))
}
