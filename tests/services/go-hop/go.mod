module go-hop

go 1.21
