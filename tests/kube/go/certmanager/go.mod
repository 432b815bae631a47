// The path lies under cert-manager's own so that this module may import its
// internal/webhook package (the upstream main packages are separate modules
// that the module proxy does not serve).
module github.com/cert-manager/cert-manager/testbed

go 1.26.0

require github.com/cert-manager/cert-manager v1.21.2
