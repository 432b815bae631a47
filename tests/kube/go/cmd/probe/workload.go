package main

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"
)

// workload appends numbered records through the command line client at a steady rate, remembers which were acknowledged at
// which offset, and in the end reads everything back: what was acknowledged must be there, once, where it was said to be.
//
//	probe workload [-topic T] [-partition N] [-rate R] -- PROGRAM [GLOBAL OPTIONS..]
//
// On port 8080: GET / tells how it stands, POST /mark begins a new measurement of the longest gap between acknowledgements, POST /finish
// stops and verifies, and answers with 500 when something is missing. The process then stays, and says the same again, until SIGTERM.
type workload struct {
	topic, partition string
	rate             int
	client           []string
	run              string // in every value: whose records they are

	mu       sync.Mutex
	state    state
	acked    map[int]int64 // offset by number of the record
	lastAck  time.Time
	finished bool
}

type state struct {
	Sent         int    `json:"sent"`
	Acked        int    `json:"acked"`
	LongestGapMs int64  `json:"longest_gap_ms"` // since the last mark
	GapMs        int64  `json:"gap_ms"`         // since the last acknowledgement
	Restarts     int    `json:"restarts"`       // of the client, after an error; what it had not acknowledged stays unknown
	Error        string `json:"error,omitempty"`
	Verified     bool   `json:"verified"`
	Lost         int    `json:"lost"`       // acknowledged and not there, or somewhere else
	Duplicates   int    `json:"duplicates"` // there more than once
	Disorder     int    `json:"disorder"`   // acknowledged at a lower offset than one sent before
	Read         int    `json:"read"`
}

func runWorkload(args []string) error {
	flags := flag.NewFlagSet("workload", flag.ContinueOnError)
	w := &workload{acked: map[int]int64{}}
	flags.StringVar(&w.topic, "topic", "default", "")
	flags.StringVar(&w.partition, "partition", "0", "")
	flags.IntVar(&w.rate, "rate", 100, "records a second")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if w.client = flags.Args(); len(w.client) == 0 || w.rate < 1 || w.rate > 10000 {
		return errors.New("probe workload: wants -- PROGRAM [OPTIONS..] and a rate of 1 to 10000")
	}
	id := make([]byte, 6)
	if _, err := rand.Read(id); err != nil {
		return err
	}
	w.run = hex.EncodeToString(id)

	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	sending, stopSending := context.WithCancel(ctx)
	defer stopSending()
	sent := make(chan struct{})
	go func() { defer close(sent); w.send(sending) }()

	verify := sync.OnceFunc(func() {
		stopSending()
		<-sent
		w.verify(ctx)
	})
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(out http.ResponseWriter, _ *http.Request) { w.answer(out) })
	mux.HandleFunc("GET /readyz", func(out http.ResponseWriter, _ *http.Request) {
		if w.now().Acked == 0 {
			http.Error(out, "nothing was acknowledged yet", http.StatusServiceUnavailable)
		}
	})
	mux.HandleFunc("POST /mark", func(out http.ResponseWriter, _ *http.Request) {
		w.mu.Lock()
		w.state.LongestGapMs = 0
		w.mu.Unlock()
		w.answer(out)
	})
	mux.HandleFunc("POST /finish", func(out http.ResponseWriter, _ *http.Request) { verify(); w.answer(out) })
	server := &http.Server{Addr: ":8080", Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	ended := make(chan error, 1)
	go func() { ended <- server.ListenAndServe() }()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
	}
	<-sent
	return server.Close()
}

func (w *workload) now() state {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := w.state
	if !w.lastAck.IsZero() && !w.finished {
		s.GapMs = time.Since(w.lastAck).Milliseconds()
		// A gap that has not ended is one too.
		s.LongestGapMs = max(s.LongestGapMs, s.GapMs)
	}
	return s
}

func (w *workload) answer(out http.ResponseWriter) {
	s := w.now()
	out.Header().Set("Content-Type", "application/json")
	if s.Verified && (s.Lost > 0 || s.Duplicates > 0 || s.Disorder > 0) || s.Error != "" && !s.Verified && w.finished {
		out.WriteHeader(http.StatusInternalServerError)
	}
	_ = json.NewEncoder(out).Encode(s)
}

// send keeps a client running until it is told to stop.
func (w *workload) send(ctx context.Context) {
	next := 1
	for ctx.Err() == nil {
		err := w.feed(ctx, &next)
		if ctx.Err() != nil {
			break
		}
		w.mu.Lock()
		w.state.Restarts++
		w.state.Error = fmt.Sprint(err)
		w.mu.Unlock()
		fmt.Fprintln(os.Stderr, "client:", err)
		select {
		case <-ctx.Done():
		case <-time.After(200 * time.Millisecond):
		}
	}
	w.mu.Lock()
	w.finished = true
	w.mu.Unlock()
}

// feed is the life of one client. It ends when the client does; after ctx is done it has half a minute to have the rest
// acknowledged.
func (w *workload) feed(ctx context.Context, next *int) error {
	client := exec.Command(w.client[0], append(w.client[1:], "produce", "--topic", w.topic, "--partition", w.partition, "--each", "--quiet", "--output", "json")...)
	var complaint strings.Builder
	client.Stderr = &complaint
	input, err := client.StdinPipe()
	if err != nil {
		return err
	}
	output, err := client.StdoutPipe()
	if err != nil {
		return err
	}
	if err := client.Start(); err != nil {
		return err
	}
	base := *next - 1 // the client counts lines from 1
	read := make(chan error, 1)
	go func() { read <- w.acknowledge(output, base) }()

	tick := time.NewTicker(time.Second / time.Duration(w.rate))
	defer tick.Stop()
	var grace *time.Timer
	done := ctx.Done()
	for {
		select {
		case <-tick.C:
			if done == nil {
				continue
			}
			if _, err := fmt.Fprintf(input, "%s-%d\n", w.run, *next); err != nil {
				done = nil // its end comes by `read`
				continue
			}
			w.mu.Lock()
			w.state.Sent++
			w.mu.Unlock()
			*next++
		case <-done:
			done = nil
			_ = input.Close()
			grace = time.AfterFunc(30*time.Second, func() { _ = client.Process.Kill() })
		case err := <-read:
			if grace != nil {
				grace.Stop()
			}
			_ = input.Close()
			if ended := client.Wait(); ended != nil {
				return fmt.Errorf("%w: %s", ended, strings.TrimSpace(complaint.String()))
			}
			return err
		}
	}
}

func (w *workload) acknowledge(output io.Reader, base int) error {
	lines := bufio.NewScanner(output)
	for lines.Scan() {
		var ack struct {
			Offset *int64 `json:"offset"`
			Line   int    `json:"line"`
		}
		if err := json.Unmarshal(lines.Bytes(), &ack); err != nil {
			return fmt.Errorf("client wrote %q: %w", lines.Text(), err)
		}
		if ack.Offset == nil || ack.Line == 0 {
			continue // its summary
		}
		now := time.Now()
		w.mu.Lock()
		w.acked[base+ack.Line] = *ack.Offset
		w.state.Acked = len(w.acked)
		if !w.lastAck.IsZero() {
			w.state.LongestGapMs = max(w.state.LongestGapMs, now.Sub(w.lastAck).Milliseconds())
		}
		w.lastAck = now
		w.mu.Unlock()
	}
	return lines.Err()
}

// verify reads the whole partition. Reading is tried for a minute: the cluster may be in the middle of something.
func (w *workload) verify(ctx context.Context) {
	var found map[string][]int64
	var err error
	for end := time.Now().Add(time.Minute); time.Now().Before(end) && ctx.Err() == nil; time.Sleep(500 * time.Millisecond) {
		if found, err = w.readBack(ctx); err == nil {
			break
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if err != nil || found == nil {
		w.state.Error = fmt.Sprintf("reading back: %v", err)
		return
	}
	highest := int64(-1)
	for number := 1; number <= w.state.Sent; number++ {
		value := fmt.Sprintf("%s-%d", w.run, number)
		at := found[value]
		if len(at) > 1 {
			w.state.Duplicates++
		}
		offset, acked := w.acked[number]
		if !acked {
			continue
		}
		if len(at) == 0 || at[0] != offset {
			w.state.Lost++
		}
		if offset < highest {
			w.state.Disorder++
		}
		highest = max(highest, offset)
	}
	w.state.Read = len(found)
	w.state.Verified = true
}

func (w *workload) readBack(ctx context.Context) (map[string][]int64, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	client := exec.CommandContext(ctx, w.client[0], append(w.client[1:], "consume", w.topic, "--partition", w.partition,
		"--from", "earliest", "--format", "json", "--encoding", "text")...)
	var complaint strings.Builder
	client.Stderr = &complaint
	output, err := client.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := client.Start(); err != nil {
		return nil, err
	}
	found := map[string][]int64{}
	decoder := json.NewDecoder(output)
	for {
		var record struct {
			Offset int64 `json:"offset"`
			Value  any   `json:"value"`
		}
		if err := decoder.Decode(&record); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			_ = client.Process.Kill()
			_ = client.Wait()
			return nil, err
		}
		if value, ok := record.Value.(string); ok && strings.HasPrefix(value, w.run+"-") {
			found[value] = append(found[value], record.Offset)
		}
	}
	if err := client.Wait(); err != nil {
		return nil, fmt.Errorf("%w: %s", err, strings.TrimSpace(complaint.String()))
	}
	return found, nil
}
