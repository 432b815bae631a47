// Command probe is the workload of the smoke test, and the client that asks questions from inside a pod. Its image holds
// nothing else, so it also does the little that a shell would be needed for.
//
//	probe serve                 HTTP on 8080 (/, /healthz, /readyz), gRPC health on 9090; notes start and stop in $DATA/log
//	probe get URL [TEXT]        GET, or POST of TEXT; prints the body, fails on a status of 400 or more
//	probe lookup NAME           addresses of a name
//	probe cat FILE | append FILE TEXT | remove FILE | id
//	probe fill FILE BYTES       writes zeros until done or the disk is full, and says how many
//	probe eat                   takes memory until it is killed
//	probe workload ..           appends through the client and checks what was acknowledged; see workload.go
package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
)

const notReadyFile = "/tmp/not-ready"

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) == 0 {
		return errors.New("usage: probe serve|get|lookup|cat|append|remove|id|fill|eat|workload")
	}
	command, rest := args[0], args[1:]
	wants := map[string]int{"lookup": 1, "cat": 1, "append": 2, "remove": 1, "fill": 2}
	if len(rest) < wants[command] {
		return fmt.Errorf("probe %s: wants %d arguments", command, wants[command])
	}
	switch command {
	case "serve":
		return serve()
	case "workload":
		return runWorkload(rest)
	case "get":
		return get(rest)
	case "lookup":
		ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
		defer cancel()
		addresses, err := net.DefaultResolver.LookupHost(ctx, rest[0])
		fmt.Println(strings.Join(addresses, "\n"))
		return err
	case "cat":
		data, err := os.ReadFile(rest[0])
		fmt.Print(string(data))
		return err
	case "append":
		return appendLine(rest[0], rest[1])
	case "remove":
		return os.Remove(rest[0])
	case "id":
		fmt.Println(os.Getuid())
		return nil
	case "fill":
		return fill(rest[0], rest[1])
	case "eat":
		var held [][]byte
		for {
			held = append(held, bytes.Repeat([]byte{1}, 1<<20))
		}
	default:
		return fmt.Errorf("probe: unknown command %s", command)
	}
}

func appendLine(path, text string) error {
	file, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	_, err = file.WriteString(text + "\n")
	return errors.Join(err, file.Sync(), file.Close())
}

func fill(path, limit string) error {
	want, err := strconv.ParseInt(limit, 10, 64)
	if err != nil {
		return err
	}
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	chunk := make([]byte, 64<<10)
	var wrote int64
	for wrote < want {
		n, err := file.Write(chunk[:min(int64(len(chunk)), want-wrote)])
		wrote += int64(n)
		if errors.Is(err, syscall.ENOSPC) {
			fmt.Println(wrote, "full")
			return file.Close()
		}
		if err != nil {
			return err
		}
	}
	fmt.Println(wrote)
	return errors.Join(file.Sync(), file.Close())
}

// get shows the pod's service account to the API server and to nobody else.
func get(args []string) error {
	if len(args) == 0 {
		return errors.New("probe get: wants a URL")
	}
	// Long enough for an answer that takes time (/finish of a workload); a connection must be there much sooner.
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	method, body := http.MethodGet, io.Reader(nil)
	if len(args) > 1 {
		method, body = http.MethodPost, strings.NewReader(args[1])
	}
	request, err := http.NewRequestWithContext(ctx, method, args[0], body)
	if err != nil {
		return err
	}
	request.Header.Set("Accept", "*/*")
	transport := &http.Transport{DialContext: (&net.Dialer{Timeout: 4 * time.Second}).DialContext}
	if request.URL.Scheme == "https" && strings.HasPrefix(request.URL.Hostname(), "kubernetes.") {
		const account = "/var/run/secrets/kubernetes.io/serviceaccount/"
		ca, err := os.ReadFile(account + "ca.crt")
		if err != nil {
			return err
		}
		token, err := os.ReadFile(account + "token")
		if err != nil {
			return err
		}
		pool := x509.NewCertPool()
		pool.AppendCertsFromPEM(ca)
		transport.TLSClientConfig = &tls.Config{RootCAs: pool}
		request.Header.Set("Authorization", "Bearer "+string(token))
	}
	response, err := (&http.Client{Transport: transport}).Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if _, err := io.Copy(os.Stdout, response.Body); err != nil {
		return err
	}
	if response.StatusCode >= 400 {
		return errors.New(response.Status)
	}
	return nil
}

func note(text string) error {
	host, _ := os.Hostname()
	line := time.Now().UTC().Format(time.RFC3339Nano) + " " + host + " " + text
	fmt.Println(line)
	if dir := os.Getenv("DATA"); dir != "" {
		return appendLine(filepath.Join(dir, "log"), line)
	}
	return nil
}

func serve() error {
	if err := note("start " + os.Getenv("VERSION")); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	listener, err := net.Listen("tcp", ":9090")
	if err != nil {
		return err
	}
	ended := make(chan error, 2)
	grpcServer := grpc.NewServer()
	healthpb.RegisterHealthServer(grpcServer, health.NewServer())
	go func() { ended <- grpcServer.Serve(listener) }()

	mux := http.NewServeMux()
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("/readyz", func(w http.ResponseWriter, _ *http.Request) {
		if _, err := os.Stat(notReadyFile); err == nil {
			http.Error(w, "not ready", http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		host, _ := os.Hostname()
		fmt.Fprintf(w, "%s %s\n", host, os.Getenv("VERSION"))
	})
	httpServer := &http.Server{Addr: ":8080", Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	go func() { ended <- httpServer.ListenAndServe() }()

	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
	}
	if err := note("sigterm"); err != nil {
		return err
	}
	grace, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	err = httpServer.Shutdown(grace)
	grpcServer.GracefulStop()
	return errors.Join(err, note("stop"))
}
